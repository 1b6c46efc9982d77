from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from onnxprune.errors import UsageError  # noqa: E402
from onnxprune.importers import InputShape  # noqa: E402
from onnxprune.importers.example import Example, example_from_given, example_from_shapes  # noqa: E402


class TwoInputs(nn.Module):
    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return image * scale


def test_shapes_in_order_and_by_name() -> None:
    in_order = example_from_shapes(TwoInputs(), [(1, 3), (1, 1)])
    by_name = example_from_shapes(TwoInputs(), {"scale": (1, 1), "image": (1, 3)})
    alone = example_from_shapes(TwoInputs(), [2, 5])

    assert [list(tensor.shape) for tensor in in_order.tensors] == [[1, 3], [1, 1]]
    # in the order of forward, whatever the order of the dict: the exported inputs follow it
    assert list(by_name.kwargs) == ["image", "scale"]
    assert [list(tensor.shape) for tensor in alone.tensors] == [[2, 5]]


def test_an_unknown_name_is_met_with_the_known_ones() -> None:
    with pytest.raises(
        UsageError, match=r"no input 'imgae' \(did you mean 'image'\?\); its inputs: image, scale"
    ):
        example_from_shapes(TwoInputs(), {"imgae": (1, 3)})
    with pytest.raises(UsageError, match="no input 'imgae'"):
        example_from_given(TwoInputs(), {"imgae": torch.zeros(1, 3)})


def test_element_types_follow_the_parameters_or_what_was_asked_for() -> None:
    module = nn.Linear(3, 3).double()

    assert example_from_shapes(module, [(1, 3)]).tensors[0].dtype is torch.float64
    assert example_from_shapes(module, [InputShape((1, 3), "float16")]).tensors[0].dtype is torch.float16


def test_integers_cover_what_the_embedding_accepts() -> None:
    module = nn.Embedding(50, 4)

    tokens = example_from_shapes(module, [InputShape((2, 100), "int64")]).tensors[0]

    assert (int(tokens.min()), int(tokens.max())) == (0, 49)


@pytest.mark.parametrize("given", [3, (), {"input": "text"}, [None]])
def test_an_example_without_tensors_is_refused(given: object) -> None:
    with pytest.raises(UsageError, match="no tensor"):
        example_from_given(nn.Identity(), given)


def test_resizing_repeats_rows() -> None:
    example = Example((torch.tensor([[1], [2]]), {"b": [torch.tensor([5, 6])]}), {"flag": True})

    resized = example.resized(3)

    assert resized.args[0].tolist() == [[1], [2], [1]]
    assert resized.args[1]["b"][0].tolist() == [5, 6, 5]
    assert resized.kwargs == {"flag": True}
    assert example.resized(1).args[0].tolist() == [[1]]


@pytest.mark.parametrize(
    ("shapes", "expected"), [([(4, 2), (4,)], 4), ([(4, 2), (3, 2)], None), ([(4, 2), ()], None)]
)
def test_the_batch_is_what_all_first_axes_share(shapes: list[tuple[int, ...]], expected: int | None) -> None:
    assert Example(tuple(torch.zeros(shape) for shape in shapes), {}).batch_size == expected


def test_drawn_inputs_are_like_the_example() -> None:
    example = Example(
        (
            torch.randn(1000) * 3 + 10,
            torch.zeros(1000),
            torch.arange(1000) % 7 + 2,
            torch.ones(1000, dtype=torch.int64),
            torch.zeros(1000, dtype=torch.bool),
        ),
        {},
    )

    floats, from_zeros, integers, constant, truths = example.drawn(torch.Generator().manual_seed(0)).tensors

    assert not torch.equal(floats, example.args[0])
    assert abs(float(floats.mean()) - 10) < 0.5
    assert abs(float(floats.std()) - 3) < 0.3
    assert abs(float(from_zeros.std()) - 1) < 0.1  # an example of zeros says nothing; draw something
    assert (int(integers.min()), int(integers.max())) == (2, 8)
    assert set(constant.tolist()) == {1}  # a mask of ones stays one
    assert set(truths.tolist()) == {True, False}
    assert [drawn.dtype for drawn in (floats, integers, truths)] == [torch.float32, torch.int64, torch.bool]


def test_the_same_seed_draws_the_same() -> None:
    example = Example((torch.zeros(10),), {})

    first, second, other = (example.drawn(torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))

    assert torch.equal(first.args[0], second.args[0])
    assert not torch.equal(first.args[0], other.args[0])
