"""Movement from two files, and added up over steps of plain gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from onnxprune import measure_sensitivity, prune
from onnxprune.analyze import analyze
from onnxprune.data import Dataset
from onnxprune.errors import PlanError, UsageError
from onnxprune.scores.members import channel_figures
from onnxprune.scores.movement import MOVEMENT_SCORERS, Movement

AFTER = small_models.mlp(width=8)
WEIGHTS = ("fc1.weight", "fc2.weight", "fc3.weight")


def arrays_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        each.name: onnx.numpy_helper.to_array(each).astype(np.float64) for each in proto.graph.initializer
    }


@pytest.fixture
def before(tmp_path):
    """The file of the same graph with other weights, and these weights."""
    proto = small_models.mlp(width=8, seed=7)
    onnx.save(proto, tmp_path / "before.onnx")
    return tmp_path / "before.onnx", arrays_of(proto)


def expected(score: str, before: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    after = arrays_of(AFTER)
    if score == "movement":
        return {name: (after[name] ** 2 - before[name] ** 2) / 2 for name in after}
    return {name: np.abs(after[name] - before[name]) for name in after}


@pytest.mark.parametrize("score", [*MOVEMENT_SCORERS])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2x2"])
def test_zeros_go_where_weights_moved_least(before, score, pattern):
    path, earlier = before
    amount = {} if pattern == "2:4" else {"amount": 0.5}
    result = prune(ir.from_proto(AFTER), pattern=pattern, score=score, before=path, **amount)
    assert result.report.passed
    assert result.plan.recipe["before"] == str(path)
    figures = expected(score, earlier)
    for name in WEIGHTS:
        kept, mine = result.plan.masks[name].unpack(), figures[name]
        if pattern == "unstructured":
            assert mine[~kept].max() <= mine[kept].min() + 1e-6
        elif pattern == "2:4":
            order = np.argsort(mine.reshape(-1, 4), axis=1, kind="stable")
            ranked = np.take_along_axis(kept.reshape(-1, 4), order, axis=1)
            assert (ranked == [False, False, True, True]).all()
        else:
            means = mine.reshape(len(mine) // 2, 2, -1, 2).mean(axis=(1, 3))
            blocks = kept.reshape(len(mine) // 2, 2, -1, 2).all(axis=(1, 3))
            assert means[~blocks].max() <= means[blocks].min() + 1e-6


@pytest.mark.parametrize("score", [*MOVEMENT_SCORERS])
def test_channels_go_whose_members_moved_least(before, score):
    path, earlier = before
    model = ir.from_proto(AFTER)
    result = prune(model, pattern="channels", amount=0.5, score=score, before=path, align=1)
    figures = expected(score, earlier)
    sums = figures["fc1.weight"].sum(axis=1) + figures["fc1.bias"] + figures["fc2.weight"].sum(axis=0)
    (group,) = (group for group in result.plan.groups if group.name == "fc1")
    assert sorted(group.removed.tolist()) == sorted(np.argsort(sums)[:4].tolist())


def test_heads_and_sensitivity(tmp_path):
    onnx.save(small_models.attention(seed=5), tmp_path / "before.onnx")
    model, before = ir.from_proto(small_models.attention()), tmp_path / "before.onnx"
    result = prune(model, pattern="heads", amount=0.5, score="movement", before=before)
    assert result.report.passed
    data = Dataset.from_arrays({"x": np.random.default_rng(0).standard_normal((6, 6, 32)).astype(np.float32)})
    for pattern in ("heads", "unstructured"):
        found = measure_sensitivity(
            model,
            data=data,
            pattern=pattern,
            score="movement",
            before=tmp_path / "before.onnx",
            amounts=(0.5,),
        )
        assert found.curves


def test_what_lacks_or_ignores_earlier_weights_is_refused(before, tmp_path):
    path, _ = before
    model = ir.from_proto(AFTER)
    for pattern in ("channels", "unstructured"):
        with pytest.raises(UsageError, match="give --before earlier"):
            prune(model, pattern=pattern, amount=0.5, score="movement")
        with pytest.raises(UsageError, match="score 'l2' looks at no earlier weights"):
            prune(model, pattern=pattern, amount=0.5, score="l2", before=path)
        other = tmp_path / "other.onnx"
        onnx.save(small_models.mlp(width=6), other)
        with pytest.raises(PlanError, match="holds another graph"):
            prune(model, pattern=pattern, amount=0.5, score="movement", before=other)
    data = Dataset.from_arrays({"x": np.zeros((8, 16), np.float32)})
    with pytest.raises(UsageError, match="leave out rounds"):
        prune(model, amount=0.5, score="movement", before=path, rounds=2, recover="bias", data=data)


# --- while it runs ------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def descend(torch: Any, module: Any, movement: Movement, steps: int, rate: float) -> None:
    """Plain gradient descent towards random labels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 16, generator=generator)
    labels = torch.randint(0, 4, (32,), generator=generator)
    for _ in range(steps):
        (y,) = module({"x": x}).values()
        module.zero_grad()
        torch.nn.functional.cross_entropy(y, labels).backward()
        movement.add(module)
        with torch.no_grad():
            for weight in module.trained.values():
                weight -= rate * weight.grad


def test_small_plain_steps_add_up_to_what_two_files_say(torch):
    from onnxprune.executor.module import OnnxModule

    module, movement, rate = OnnxModule(ir.from_proto(AFTER)), Movement(), 0.01
    before = {name: weight.detach().double().numpy().copy() for name, weight in module.trained.items()}
    descend(torch, module, movement, 200, rate)
    assert movement.steps == 200
    for name, figures in movement.figures().items():
        after = module.trained[name].detach().double().numpy()
        from_ends = MOVEMENT_SCORERS.get("movement")(after, before[name])
        assert np.abs(from_ends).max() > 1e-3
        np.testing.assert_allclose(figures * rate, from_ends, atol=0.02 * np.abs(from_ends).max())


def test_the_sum_is_that_of_weights_times_gradients(torch):
    from onnxprune.executor.module import OnnxModule

    module, movement = OnnxModule(ir.from_proto(AFTER)), Movement()
    expected = 0.0
    for _ in range(3):
        descend(torch, module, movement, 1, 0.0)
        expected = expected - module.trained["fc1.weight"].detach() * module.trained["fc1.weight"].grad
    np.testing.assert_allclose(movement.figures()["fc1.weight"], expected, rtol=1e-6)


def test_an_interrupted_run_goes_on_where_it_was(torch):
    from onnxprune.executor.module import OnnxModule

    whole, module = Movement(), OnnxModule(ir.from_proto(AFTER))
    first, rest = Movement(), Movement()
    descend(torch, module, first, 2, 0.1)
    rest.load(first.state(), module)
    whole.load(first.state(), module)
    descend(torch, module, rest, 2, 0.0)
    descend(torch, module, whole, 2, 0.0)
    assert rest.steps == 4
    for name, figures in rest.figures().items():
        assert np.array_equal(figures, whole.figures()[name])
        assert not np.array_equal(figures, first.figures()[name])


def test_figures_of_weights_add_up_to_those_of_channels_and_heads():
    model = ir.from_proto(small_models.attention(width=8, heads=2, tokens=3))
    analysis = analyze(model)
    random = np.random.default_rng(0)
    figures = {
        name: random.standard_normal(tuple(value.const_value.shape))
        for name, value in analysis.model.graph.initializers.items()
    }
    found = channel_figures(analysis.groups, figures)
    heads = next(group for group in analysis.groups if group.kind == "heads")
    for head in range(2):
        mine = slice(4 * head, 4 * head + 4)
        parts = [
            figures[f"{name}.weight"][:, mine].sum() + figures[f"{name}.bias"][mine].sum()
            for name in ("query", "key", "value")
        ]
        np.testing.assert_allclose(found[heads.name][head], sum(parts) + figures["out.weight"][mine].sum())
