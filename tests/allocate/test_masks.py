from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.allocate.masks import choose_masks
from onnxprune.allocate.selection import Selector, find_cut
from onnxprune.errors import ModelError, PlanError, UsageError
from onnxprune.ops.weights import find_weights
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.types import Mask, Skipped, WeightUse


def chain(*weights: Any, op: str = "MatMul", **attributes: int) -> ir.Model:
    """Return a model that uses each array (named w0, w1, ...) in a node of its own (n0, n1, ...)."""
    nodes, inputs, outputs = [], [], []
    for number, _ in enumerate(weights):
        inputs.append(helper.make_tensor_value_info(f"x{number}", TensorProto.FLOAT, None))
        outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, None))
        nodes.append(
            helper.make_node(
                op, [f"x{number}", f"w{number}"], [f"y{number}"], name=f"n{number}", **attributes
            )
        )
    graph = helper.make_graph(nodes, "g", inputs, outputs, [])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    for number, array in enumerate(weights):
        value = next(node for node in model.graph if node.name == f"n{number}").inputs[1]
        assert value is not None
        value.const_value = ir.tensor(np.asarray(array), name=f"w{number}")
        model.graph.register_initializer(value)
    return model


def choose(model: ir.Model, pattern: str, amount: float | None = None, **options: Any) -> dict[str, Mask]:
    return choose_all(model, pattern, amount, **options)[0]


def choose_all(
    model: ir.Model, pattern: str, amount: float | None = None, *, score: str = "l1", **options: Any
) -> tuple[dict[str, Mask], list[Skipped]]:
    uses, skipped = find_weights(model)
    assert not skipped
    scorer = WEIGHT_SCORERS.get(score)
    return choose_masks(model, uses, pattern=pattern, amount=amount, scorer=scorer, **options)


def normal(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# --- unstructured -----------------------------------------------------------------------------------------


def lowest_by_sorting(arrays: list[Any], share: float) -> list[Any]:
    """The oracle: sort all magnitudes as float64, ties by position, and drop the first."""
    flat = np.concatenate([np.abs(array.astype(np.float64)).reshape(-1) for array in arrays])
    kept = np.ones(flat.size, dtype=bool)
    kept[np.argsort(flat, kind="stable")[: min(round(share * flat.size), flat.size - 1)]] = False
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(kept, ends), arrays, strict=True)]


dtypes = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.float64])


@st.composite
def weight_arrays(draw: st.DrawFn) -> Any:
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    kind = draw(st.sampled_from(["normal", "few values", "tiny", "zeros and signs"]))
    values = generator.standard_normal(shape)
    if kind == "few values":
        values = np.round(values)
    elif kind == "tiny":
        values = values * 1e-39
    elif kind == "zeros and signs":
        values = np.where(generator.random(shape) < 0.5, -0.0, np.sign(values))
    return values.astype(draw(dtypes))


@settings(max_examples=150, deadline=None)
@given(st.lists(weight_arrays(), min_size=1, max_size=4), st.floats(0.01, 0.99))
def test_the_global_threshold_equals_sorting(arrays: list[Any], share: float) -> None:
    masks = choose(chain(*arrays), "unstructured", share, scope="global")
    for number, expected in enumerate(lowest_by_sorting(arrays, share)):
        mask = masks.get(f"w{number}")
        found = np.ones(expected.shape, dtype=bool) if mask is None else mask.unpack()
        np.testing.assert_array_equal(found, expected)


@settings(max_examples=80, deadline=None)
@given(st.lists(weight_arrays(), min_size=1, max_size=3), st.floats(0.01, 0.99))
def test_uniform_sorts_each_tensor_alone(arrays: list[Any], share: float) -> None:
    masks = choose(chain(*arrays), "unstructured", share, scope="uniform")
    for number, array in enumerate(arrays):
        (expected,) = lowest_by_sorting([array], share)
        mask = masks.get(f"w{number}")
        np.testing.assert_array_equal(np.ones(array.shape, bool) if mask is None else mask.unpack(), expected)


def test_tensors_of_several_pieces_are_selected_exactly() -> None:
    arrays = [
        normal(1100, 1000, seed=1),
        np.round(normal(1500, 1000, seed=2) * 4) / 4,
    ]  # many ties in the second
    masks = choose(chain(*arrays), "unstructured", 0.37, scope="global")
    for number, expected in enumerate(lowest_by_sorting(arrays, 0.37)):
        np.testing.assert_array_equal(masks[f"w{number}"].unpack(), expected)


def test_ties_go_by_position() -> None:
    mask = choose(chain(np.full((2, 4), -3.0, np.float32)), "unstructured", 0.5)["w0"]
    np.testing.assert_array_equal(mask.unpack(), [[False] * 4, [True] * 4])


def test_l1_and_l2_rank_single_weights_alike_where_squares_would_not_fit() -> None:
    small = normal(16, 16) * np.float32(1e-30)  # squares are 0 in float32
    assert choose(chain(small), "unstructured", 0.3, score="l2")["w0"].unpack().sum() == 256 - round(
        0.3 * 256
    )
    large = np.array([[1e300, 3e300, -2e300, 4e300]])  # squares overflow in float64
    np.testing.assert_array_equal(
        choose(chain(large), "unstructured", 0.5, score="l2")["w0"].unpack(), [[False, True, False, True]]
    )


def test_random_depends_on_the_seed_and_the_name_alone() -> None:
    first = choose(chain(normal(40, 40), normal(40, 40)), "unstructured", 0.5, score="random", seed=1)
    again = choose(chain(normal(40, 40, seed=5), normal(40, 40)), "unstructured", 0.5, score="random", seed=1)
    other = choose(chain(normal(40, 40), normal(40, 40)), "unstructured", 0.5, score="random", seed=2)
    np.testing.assert_array_equal(first["w0"].bits, again["w0"].bits)
    assert not np.array_equal(first["w0"].bits, other["w0"].bits)
    assert not np.array_equal(first["w0"].bits, first["w1"].bits)
    assert first["w0"].kept == 800


def test_a_tensor_never_loses_its_last_weight_when_treated_alone() -> None:
    assert choose(chain(normal(2, 2)), "unstructured", 0.99)["w0"].kept == 1


def test_where_nothing_goes_the_reason_is_given() -> None:
    masks, skipped = choose_all(chain(normal(1, 2), normal(9, 9)), "unstructured", 0.1)
    assert list(masks) == ["w1"]
    assert skipped == [Skipped("w0", "no weight of it is among those that go")]


# --- the selection itself ---------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=1, max_size=30), st.integers(0, 60))
def test_entries_for_several_weights_end_before_the_target(
    entries: list[tuple[int, int]], target: int
) -> None:
    scores = np.array([score for score, _ in entries], dtype=np.float64)
    sizes = np.array([size for _, size in entries], dtype=np.int64)
    target = min(target, int(sizes.sum()) - 1)
    pieces = [(scores[:7], sizes[:7]), (scores[7:], sizes[7:])]
    selector = Selector(find_cut([lambda: iter(pieces)], target, wide=True))
    kept = np.concatenate([selector.keep(*piece) for piece in pieces])
    order = np.argsort(scores, kind="stable")
    expected = np.ones(len(entries), dtype=bool)
    expected[order[np.cumsum(sizes[order]) <= target]] = False
    np.testing.assert_array_equal(kept, expected)


# --- N:M --------------------------------------------------------------------------------------------------


def most_kept_in_a_run(kept: Any, axis: int, run: int) -> int:
    """The oracle: look at every run, one at a time."""
    along = np.moveaxis(kept, axis, -1).reshape(-1, kept.shape[axis])
    return max(int(row[start : start + run].sum()) for row in along for start in range(0, len(row), run))


LAYOUTS = [
    ("MatMul", {}, 2, 0),
    ("MatMul", {}, 3, 1),
    ("Gemm", {}, 2, 0),
    ("Gemm", {"transB": 1}, 2, 1),
    ("Conv", {}, 4, 1),
    ("Conv", {}, 3, 1),
    ("ConvTranspose", {}, 4, 0),
]


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(LAYOUTS), st.data())
def test_runs_hold_along_the_summed_axis_and_keep_the_largest(layout: Any, data: st.DataObject) -> None:
    op, attributes, rank, axis = layout
    run = data.draw(st.integers(2, 6))
    keep = data.draw(st.integers(1, run - 1))
    shape = [data.draw(st.integers(1, 4)) for _ in range(rank)]
    shape[axis] = run * data.draw(st.integers(1, 3))
    weight = normal(*shape, seed=data.draw(st.integers(0, 99)))
    mask = choose(chain(weight, op=op, **attributes), f"{keep}:{run}")["w0"].unpack()
    assert most_kept_in_a_run(mask, axis, run) == keep
    assert mask.sum() * run == mask.size * keep
    magnitudes = np.moveaxis(np.abs(weight), axis, -1).reshape(-1, run)
    runs = np.moveaxis(mask, axis, -1).reshape(-1, run)
    for kept, size in zip(runs, magnitudes, strict=True):
        assert size[kept].min() >= size[~kept].max()


@pytest.mark.parametrize("run", [4, 64])  # numpy sorts long runs by another method
def test_ties_in_a_run_drop_the_first(run: int) -> None:
    weight = np.round(normal(run, 50))
    mask = choose(chain(weight), f"{run // 2}:{run}")["w0"].unpack()
    for kept, column in zip(mask.T, weight.T, strict=True):
        order = sorted(range(run), key=lambda place: (abs(column[place]), place))
        assert sorted(np.flatnonzero(~kept)) == sorted(order[: run // 2])


def test_groups_of_a_transposed_convolution_have_runs_of_their_own() -> None:
    _, skipped = choose_all(chain(normal(12, 3, 3, 3), op="ConvTranspose", group=2), "2:4")
    assert "6 channels, not a multiple of 4" in skipped[0].reason
    assert choose(chain(normal(16, 3, 3, 3), op="ConvTranspose", group=2), "2:4")["w0"].kept == 16 * 27 // 2


@pytest.mark.parametrize(
    ("shape", "attributes", "words"),
    [
        ((8, 1, 3, 3), {"group": 8}, "depthwise"),
        ((8, 3, 3, 3), {}, "3 channels, fewer than 4"),
        ((8, 6, 3, 3), {}, "6 channels, not a multiple of 4"),
    ],
)
def test_what_cannot_hold_a_run_is_skipped(
    shape: tuple[int, ...], attributes: dict[str, int], words: str
) -> None:
    masks, skipped = choose_all(chain(normal(*shape), op="Conv", **attributes), "2:4")
    assert not masks
    assert words in skipped[0].reason


# --- blocks -----------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(LAYOUTS), st.sampled_from(["l1", "l2"]), st.sampled_from(["uniform", "global"]), st.data()
)
def test_blocks_stay_or_go_whole_and_the_lowest_go(
    layout: Any, score: str, scope: str, data: st.DataObject
) -> None:
    op, attributes, rank, axis = layout
    output_axis = {("MatMul", 0): 1, ("MatMul", 1): 2, ("Gemm", 0): 1, ("Gemm", 1): 0, ("Conv", 1): 0}.get(
        (op, axis), 1
    )
    rows, columns = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    shape = [data.draw(st.integers(1, 3)) for _ in range(rank)]
    shape[output_axis], shape[axis] = data.draw(st.integers(rows, 8)), data.draw(st.integers(columns, 8))
    weight = normal(*shape, seed=data.draw(st.integers(0, 99)))
    share = data.draw(st.floats(0.2, 0.8))
    masks, _ = choose_all(
        chain(weight, op=op, **attributes), f"block:{rows}x{columns}", share, score=score, scope=scope
    )
    kept = masks["w0"].unpack() if masks else np.ones(shape, bool)
    matrices = np.moveaxis(kept, (output_axis, axis), (-2, -1)).reshape(-1, shape[output_axis], shape[axis])
    values = np.moveaxis(weight, (output_axis, axis), (-2, -1)).reshape(matrices.shape).astype(np.float64)
    gone, stay, sizes = [], [], []
    for matrix, value in zip(matrices, values, strict=True):
        for row in range(0, matrix.shape[0], rows):
            for column in range(0, matrix.shape[1], columns):
                place = slice(row, row + rows), slice(column, column + columns)
                assert matrix[place].all() or not matrix[place].any()
                power = 1 if score == "l1" else 2
                mean = np.mean(np.abs(value[place]) ** power) ** (1 / power)
                (stay if matrix[place].all() else gone).append(mean)
                sizes.append(matrix[place].size)
    assert not gone or not stay or max(gone) <= min(stay) * (1 + 1e-12)
    target = min(round(share * weight.size), weight.size - 1)
    assert target - max(sizes) < (~kept).sum() <= target


def test_a_tensor_smaller_than_a_block_is_skipped() -> None:
    _, skipped = choose_all(chain(normal(4, 2)), "block:4x4", 0.5)
    assert skipped == [Skipped("w0", "it is smaller than one block: 2 x 4")]


def test_block_means_do_not_overflow() -> None:
    weight = np.full((4, 4), 1e200)
    weight[:2] = 2e200
    kept = choose(chain(weight), "block:2x2", 0.5, score="l2")["w0"].unpack()
    np.testing.assert_array_equal(kept, weight > 1.5e200)


# --- which tensors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("glob", ["w0", "w?", "n0", "*0"])
def test_protected_tensors_and_consumers_stay_dense(glob: str) -> None:
    masks, skipped = choose_all(chain(normal(4, 4)), "2:4", protect=[glob])
    assert not masks
    assert skipped == [Skipped("w0", f"protected by {glob!r}")]


def tied(second: onnx.NodeProto) -> ir.Model:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], name="first"), second]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(normal(8, 8), "w"), numpy_helper.from_array(np.array([1, 2]), "ids")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))


def test_tied_uses_that_sum_over_the_same_axis_share_a_mask() -> None:
    model = tied(helper.make_node("MatMul", ["h", "w"], ["y"], name="second"))
    assert most_kept_in_a_run(choose(model, "2:4")["w"].unpack(), 0, 4) == 2


def test_tied_uses_that_disagree_are_skipped_unless_the_pattern_has_no_axis() -> None:
    model = tied(helper.make_node("Gemm", ["h", "w"], ["y"], name="second", transB=1))
    masks, skipped = choose_all(model, "2:4")
    assert not masks
    assert skipped[0].reason == "it is tied, and its uses (first, second) sum over different axes"
    assert choose(model, "unstructured", 0.5)["w"].kept == 32


def test_a_tensor_that_is_also_looked_up_is_skipped() -> None:
    _, skipped = choose_all(
        tied(helper.make_node("Gather", ["w", "ids"], ["y"], name="lookup")), "unstructured", 0.5
    )
    assert skipped[0].reason == "it is also read by Gather lookup, which does not sum over it"


def test_integers_are_skipped() -> None:
    _, skipped = choose_all(chain(np.ones((4, 4), np.int8)), "unstructured", 0.5)
    assert skipped == [Skipped("w0", "it holds int8 numbers; prune before quantizing")]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(np.nan, np.float32), (np.inf, np.float16), (-np.inf, ml_dtypes.bfloat16), (np.nan, float)],
)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2x2"])
def test_weights_that_are_no_numbers_are_refused_by_name_and_index(
    value: float, dtype: Any, pattern: str
) -> None:
    weight = normal(4, 4).astype(dtype)
    weight[2, 3] = value
    with pytest.raises(ModelError, match=r"weight 'w0' at \[2, 3\] is (nan|inf|-inf)"):
        choose(chain(weight), pattern, None if pattern == "2:4" else 0.5)


# --- requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pattern", ["", "4:2", "2:2", "0:4", "block:0x4", "block:4", "2:5000", "structured", "2:4 "]
)
def test_patterns_that_make_no_sense(pattern: str) -> None:
    with pytest.raises(UsageError):
        choose(chain(normal(4, 4)), pattern, 0.5)


@pytest.mark.parametrize("amount", [None, 0, 1, -0.1, 1.5, math.nan])
def test_amounts_that_make_no_sense(amount: float | None) -> None:
    with pytest.raises(UsageError):
        choose(chain(normal(4, 4)), "unstructured", amount)


def test_the_amount_of_a_run_is_its_own() -> None:
    assert choose(chain(normal(4, 4)), "1:4", 0.75)["w0"].kept == 4
    with pytest.raises(UsageError, match=r"always removes 0\.5"):
        choose(chain(normal(4, 4)), "2:4", 0.6)


def test_uses_of_another_model_are_refused() -> None:
    with pytest.raises(PlanError, match="no weight 'other'"):
        choose_masks(
            chain(normal(4, 4)),
            [WeightUse("other", "n0", "MatMul", 0, 1)],
            pattern="2:4",
            amount=None,
            scorer=WEIGHT_SCORERS.get("l1"),
        )


def test_unknown_scope_and_score() -> None:
    with pytest.raises(UsageError, match="unknown scope"):
        choose(chain(normal(4, 4)), "unstructured", 0.5, scope="local")
    with pytest.raises(UsageError, match="unknown weight score 'l3'"):
        choose(chain(normal(4, 4)), "unstructured", 0.5, score="l3")
