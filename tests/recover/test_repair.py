"""Repair of whole models: against another solver, with shapes, supports and types, never for the worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import graph_proto
from generated import generated_model
from repairing import Pair, cut_pair, masked_pair, outputs, random_masks, samples_for, stored
from scipy.linalg import lstsq
from small_models import attention, concat_net, depthwise_net, mlp, residual_net

from onnxprune.calibration.layerwise import portions_of
from onnxprune.data import Dataset
from onnxprune.errors import DataError, UsageError
from onnxprune.ops.linear import find_linear
from onnxprune.recover import Repaired, repair, walk
from onnxprune.recover import solve as solving
from onnxprune.runtime import open_session

IMAGES = "float[N,6,7,8] x"


def repaired(pair: Pair, data: Dataset, **options: Any) -> Repaired:
    return repair(pair.original, pair.pruned, pair.kept, data, **options)


def distance(model: ir.Model, pair: Pair, data: Dataset) -> float:
    """Relative energy of the difference of all outputs."""
    pairs = list(zip(outputs(pair.original, data), outputs(model, data), strict=True))
    return sum(((a - b) ** 2).sum() for a, b in pairs) / sum((a**2).sum() for a, _ in pairs)


def some(data: Dataset, samples: slice | np.ndarray) -> Dataset:
    return Dataset.from_arrays({name: array[samples] for name, array in data.arrays.items()})


# --- one layer, against another solver ----------------------------------------------------------------------


#: Body with weight ``w`` at one layer that reads x and gives y; constants; input.
ONE_LAYER: dict[str, tuple[str, dict[str, Any], str]] = {
    "conv": (
        "y = Conv<strides=[2,1], pads=[1,0,2,1], dilations=[1,2]>(x, w, b)",
        {"w": (5, 6, 3, 2), "b": (5,)}, IMAGES,
    ),
    "conv without bias": ("y = Conv(x, w)", {"w": (5, 6, 1, 1)}, IMAGES),
    "groups": ("y = Conv<group=2, pads=[1,1,1,1]>(x, w, b)", {"w": (4, 3, 3, 3), "b": (4,)}, IMAGES),
    "depthwise": ("y = Conv<group=6, pads=[1,1,1,1]>(x, w, b)", {"w": (6, 1, 3, 3), "b": (6,)}, IMAGES),
    "gemm": ("y = Gemm<transB=1, alpha=2.0, beta=0.5>(x, w, b)", {"w": (5, 9), "b": (5,)}, "float[N,9] x"),
    "gemm, no bias": ("y = Gemm(x, w)", {"w": (9, 5)}, "float[N,9] x"),
    "matmul": ("a = MatMul(x, w) y = Add(a, b)", {"w": (9, 5), "b": (5,)}, "float[N,4,9] x"),
    "matmul, no bias": ("y = MatMul(x, w)", {"w": (9, 5)}, "float[N,4,9] x"),
    "weight on the left": ("y = MatMul(w, x)", {"w": (5, 9)}, "float[N,9,4] x"),
    "stack": ("y = MatMul(x, w)", {"w": (3, 9, 5)}, "float[N,3,4,9] x"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(ONE_LAYER))
def test_a_masked_layer_gets_the_least_squares_solution(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, constants, inputs = ONE_LAYER[name]
    proto = graph_proto(body, constants=constants, inputs=inputs)
    masks = random_masks(proto, ["w"], keep=0.6)
    pair = masked_pair(proto, masks)
    data = samples_for(pair.original, 60)
    monkeypatch.setattr(solving.reconstruct, "__defaults__", (None, (1e-12,)))
    result = repaired(pair, data, masks=masks)
    (layer,) = result.layers
    assert layer.repaired, layer.outcome
    check_least_squares(pair, result, data, masks["w"].unpack())


def check_least_squares(pair: Pair, result: Repaired, data: Dataset, mask: np.ndarray) -> None:
    """Compare the weights and what is added with a solution on the rows that were not held out."""
    fit = np.concatenate([p.samples for p in portions_of(pair.original, data, 32, 0) if not p.held_out])
    samples = Dataset.from_arrays({name: array[np.sort(fit)] for name, array in data.arrays.items()})
    (linear,), _ = find_linear(pair.original)
    (target,) = outputs(pair.original, samples)
    rows, targets = linear.rows(samples.arrays["x"]), linear.targets(target)
    support = linear.matrix(mask)
    found = linear.matrix(stored(result.model)["w"])
    ours = linear.targets(outputs(result.model, samples)[0])
    for group in range(linear.groups):
        with_one = np.concatenate([rows[group], np.ones((rows.shape[1], 1))], axis=1).astype(np.float64)
        for output in range(linear.outputs):
            places = np.append(np.flatnonzero(support[group, output]), linear.inputs)
            expected, *_ = lstsq(with_one[:, places], targets[group, :, output].astype(np.float64))
            np.testing.assert_allclose(found[group, output, places[:-1]], expected[:-1], rtol=1e-4, atol=1e-4)
            best = with_one[:, places] @ expected
            np.testing.assert_allclose(ours[group, :, output], best, rtol=1e-3, atol=1e-3)
    assert not found[~support].any()


def test_a_cut_layer_gets_the_least_squares_solution(monkeypatch: pytest.MonkeyPatch) -> None:
    """What b reads is cut; with inputs that depend on each other, the rest makes up for it."""
    body = "a = Conv(x, a_w, a_b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, b_w, b_b)"
    constants: dict[str, Any] = {"a_w": (10, 3, 1, 1), "a_b": (10,), "b_w": (4, 10, 3, 3), "b_b": (4,)}
    pair = cut_pair(graph_proto(body, constants=constants))
    data = samples_for(pair.original, 60)
    monkeypatch.setattr(solving.reconstruct, "__defaults__", (None, (1e-10,)))
    result = repaired(pair, data)
    fit = np.concatenate([p.samples for p in portions_of(pair.original, data, 32, 0) if not p.held_out])
    samples = Dataset.from_arrays({"x": data.arrays["x"][np.sort(fit)]})
    linears, _ = find_linear(pair.pruned)
    (last,) = (linear for linear in linears if linear.found.use.tensor == "b_w")
    inner = open_session(pair.pruned, extra_outputs=["r"]).run({"x": samples.arrays["x"]})["r"]
    rows, targets = last.rows(inner)[0], last.targets(outputs(pair.original, samples)[0])[0]
    with_one = np.concatenate([rows, np.ones((len(rows), 1))], axis=1).astype(np.float64)
    expected, *_ = lstsq(with_one, targets.astype(np.float64))
    found = last.matrix(stored(result.model)["b_w"])[0]
    np.testing.assert_allclose(found, expected[:-1].T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(stored(result.model)["b_b"], expected[-1], rtol=1e-3, atol=1e-4)
    assert {layer.tensor: layer.outcome for layer in result.layers} == {
        "a_w": "nothing is missing",
        "b_w": "repaired",
    }


# --- laws ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [residual_net, attention, concat_net, depthwise_net, mlp])
@pytest.mark.parametrize("method", ["bias", "statistics", "reconstruct"])
def test_nothing_removed_changes_nothing(build: Any, method: Any) -> None:
    pair = cut_pair(build(), removed={})
    data = samples_for(pair.original)
    result = repaired(pair, data, method=method)
    assert {layer.outcome for layer in result.layers} == {"nothing is missing"}
    assert result.before == result.after == 0
    before, after = stored(pair.pruned), stored(result.model)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("build", [residual_net, attention, concat_net, depthwise_net, mlp])
@pytest.mark.parametrize("method", ["bias", "statistics", "reconstruct"])
def test_no_layer_and_no_model_is_worse_on_what_was_held_out(build: Any, method: Any) -> None:
    for seed in range(3):
        pair = cut_pair(build(seed), seed=seed)
        both = samples_for(pair.original, 250, seed)
        data, fresh = some(both, slice(50)), some(both, slice(50, None))
        result = repaired(pair, data, method=method, seed=seed)
        assert all(layer.after <= layer.before for layer in result.layers if layer.after is not None)
        assert result.after is not None
        assert result.before is not None
        assert result.after <= result.before
        if method == "reconstruct":
            assert result.after < 0.7 * result.before
            assert distance(result.model, pair, fresh) < distance(pair.pruned, pair, fresh)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(12))
def test_random_networks_are_never_worse(seed: int) -> None:
    proto = generated_model(seed, 6)
    pair = cut_pair(proto, seed=seed)
    data = samples_for(pair.original, 24, seed)
    for method in ("bias", "statistics", "reconstruct"):
        result = repaired(pair, data, method=method)  # type: ignore[arg-type]
        assert all(layer.after <= layer.before for layer in result.layers if layer.after is not None)
        if result.before is not None and result.after is not None:
            assert result.after <= result.before
        check_same_interface(pair.pruned, result.model, data)


def check_same_interface(pruned: ir.Model, model: ir.Model, data: Dataset) -> None:
    def interface(of: ir.Model) -> list[tuple[Any, ...]]:
        return [(v.name, v.dtype, str(v.shape)) for v in (*of.graph.inputs, *of.graph.outputs)]

    assert interface(pruned) == interface(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for before, after in zip(outputs(pruned, data), outputs(model, data), strict=True):
        assert before.shape == after.shape
        assert before.dtype == after.dtype
    shapes, others = ({n: a.shape for n, a in stored(m).items()} for m in (pruned, model))
    assert all(others[name] == shape for name, shape in shapes.items())


def test_the_given_models_are_not_changed_and_shapes_stay() -> None:
    pair = cut_pair(residual_net())
    data = samples_for(pair.original)
    before = [ir.to_proto(model).SerializeToString() for model in pair[:2]]
    result = repaired(pair, data)
    assert [ir.to_proto(model).SerializeToString() for model in pair[:2]] == before
    check_same_interface(pair.pruned, result.model, data)
    assert open_session(result.model).run({"x": data.arrays["x"][:1]})["y"].shape[0] == 1
    assert open_session(result.model).run({"x": data.arrays["x"][:7]})["y"].shape[0] == 7


def test_constant_channels_are_made_up_for_exactly_by_biases() -> None:
    body = "a = Conv(x, a_w, a_b) r = Relu(a) y = Conv(r, b_w)"
    rows = np.random.default_rng(0).standard_normal((6, 3, 1, 1)).astype(np.float32)
    rows[[1, 4]] = 0
    bias = np.array([0.1, 2, 0.2, 0.3, 3, 0.4], np.float32)
    proto = graph_proto(body, constants={"a_w": rows, "a_b": bias, "b_w": (4, 6, 3, 3)})
    original = masked_pair(proto, {}).original
    masks = random_masks(proto, ["b_w"])
    gone = np.ones((4, 6, 3, 3), bool)
    gone[:, [1, 4]] = False
    masks = {"b_w": type(masks["b_w"]).pack(gone)}
    pair = masked_pair(proto, masks)
    data = samples_for(original)
    result = repaired(pair, data, method="bias", masks=masks)
    assert distance(pair.pruned, pair, data) > 0.1
    np.testing.assert_allclose(
        outputs(result.model, data)[0], outputs(original, data)[0], rtol=1e-5, atol=1e-5
    )


def test_the_branch_makes_up_for_the_error_of_the_shortcut() -> None:
    """The shortcut loses its weights; only the sum shows it, and the branch sees the same input."""
    body = "a = Conv(x, a_w, a_b) r = Relu(a) b = Conv(r, b_w) s = Conv(x, s_w) y = Add(b, s)"
    proto = graph_proto(
        body,
        constants={"a_w": (24, 3, 1, 1), "a_b": (24,), "b_w": (4, 24, 1, 1), "s_w": (4, 3, 1, 1)},
    )
    empty = random_masks(proto, ["s_w"], keep=0)
    pair = masked_pair(proto, empty)
    data = samples_for(pair.original, 60)
    result = repaired(pair, data, masks=empty)
    by_name = {layer.tensor: layer for layer in result.layers}
    assert by_name["b_w"].repaired
    assert not stored(result.model)["s_w"].any()
    assert distance(result.model, pair, data) < 0.2 * distance(pair.pruned, pair, data)


@pytest.mark.parametrize("build", [residual_net, attention])
def test_masks_hold_exactly(build: Any) -> None:
    proto = build()
    weights = [t.name for t in proto.graph.initializer if len(t.dims) >= 2 and t.data_type == 1]
    masks = random_masks(proto, weights)
    pair = masked_pair(proto, masks)
    result = repaired(pair, samples_for(pair.original, 50), masks=masks)
    assert sum(layer.repaired for layer in result.layers) >= len(weights) - 2
    for name, mask in masks.items():
        array = stored(result.model)[name]
        assert not array[~mask.unpack()].any()
        assert array[mask.unpack()].all()
    assert result.after is not None
    assert result.before is not None
    assert result.after < 0.5 * result.before


def planted(count: int = 40, harm: float = 1.0) -> tuple[Pair, Dataset]:
    """Return a layer whose held-out samples lack the opposite of what the others lack."""
    body = "p = MatMul(x, a_w) q = MatMul(z, b_w) y = Add(p, q)"
    proto = graph_proto(
        body,
        inputs="float[N,5] x, float[N,5] z",
        constants={"a_w": np.eye(5, dtype=np.float32), "b_w": np.eye(5, dtype=np.float32)},
    )
    empty = random_masks(proto, ["a_w"], keep=0)
    pair = masked_pair(proto, empty)
    x = np.random.default_rng(0).standard_normal((count, 5)).astype(np.float32)
    z = x.copy()
    first = Dataset.from_arrays({"x": x, "z": z})
    for portion in portions_of(pair.original, first, 32, 0):
        if portion.held_out:
            z[portion.samples] *= -harm
    return pair, Dataset.from_arrays({"x": x, "z": z})


def test_a_layer_whose_repair_does_harm_is_left_and_says_so() -> None:
    pair, data = planted()
    masks: Mapping[str, Any] = {}
    for method in ("reconstruct", "bias"):
        result = repaired(pair, data, method=method, masks=masks)
        layer = next(layer for layer in result.layers if layer.tensor == "b_w")
        assert not layer.repaired
        assert "helps" in layer.outcome
        assert layer.before == layer.after
        np.testing.assert_array_equal(stored(result.model)["b_w"], np.eye(5))


def test_what_helps_each_layer_and_harms_the_whole_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = cut_pair(residual_net())
    data = samples_for(pair.original)
    figures = iter([0.1, 0.2])
    monkeypatch.setattr(walk, "divergence", lambda *_sides: [next(figures), next(figures)])
    result = repaired(pair, data)
    assert "left as it was" in result.outcome
    assert result.before == result.after == 0.1
    assert not any(layer.repaired for layer in result.layers)
    before, after = stored(pair.pruned), stored(result.model)
    assert all(np.array_equal(before[name], after[name]) for name in before)


# --- data, memory, types ------------------------------------------------------------------------------------


def test_a_small_limit_changes_the_way_and_not_the_result() -> None:
    pair = cut_pair(residual_net())
    data = samples_for(pair.original)
    free = repaired(pair, data)
    largest = max(np.prod(array.shape) for array in stored(pair.pruned).values())
    tight = repaired(pair, data, limit_bytes=int(largest) * 8 * 150)
    assert [layer.outcome for layer in tight.layers] == [layer.outcome for layer in free.layers]
    for name, array in stored(free.model).items():
        np.testing.assert_allclose(stored(tight.model)[name], array, rtol=1e-3, atol=1e-4)


def test_a_layer_that_does_not_fit_is_left_with_the_figure() -> None:
    pair = cut_pair(residual_net())
    result = repaired(pair, samples_for(pair.original), limit_bytes=200_000)
    outcomes = {layer.outcome.split(" take ")[0] for layer in result.layers}
    assert "its moments" in outcomes
    assert any(layer.repaired for layer in result.layers)


def test_a_fixed_batch_gets_whole_batches() -> None:
    proto = graph_proto(
        "a = MatMul(x, a_w) r = Relu(a) y = MatMul(r, b_w)",
        inputs="float[4,6] x",
        constants={"a_w": (6, 12), "b_w": (12, 3)},
    )
    pair = cut_pair(proto)
    result = repaired(pair, samples_for(pair.original, 42))
    assert result.held_out == 8
    assert any(layer.repaired for layer in result.layers)
    with pytest.raises(DataError, match="at least 8"):
        repaired(pair, samples_for(pair.original, 7))


def test_one_sample_is_too_few() -> None:
    pair = cut_pair(mlp())
    with pytest.raises(DataError, match="too few samples"):
        repaired(pair, samples_for(pair.original, 1))


def test_an_unknown_method_is_refused() -> None:
    pair = cut_pair(mlp())
    with pytest.raises(UsageError, match="unknown method of repair 'magic'"):
        repaired(pair, samples_for(pair.original), method="magic")


def test_half_precision_is_repaired_in_its_own_type() -> None:
    proto = graph_proto(
        "a = MatMul(x, a_w) r = Relu(a) b = MatMul(r, b_w) y = Add(b, b_b)",
        inputs="float16[N,6] x",
        outputs="float16 y",
        constants={
            "a_w": np.random.default_rng(0).standard_normal((6, 16)).astype(np.float16),
            "b_w": np.random.default_rng(1).standard_normal((16, 3)).astype(np.float16),
            "b_b": np.zeros(3, np.float16),
        },
    )
    pair = cut_pair(proto)
    data = samples_for(pair.original, 60, dtype=np.float16)
    result = repaired(pair, data)
    assert {array.dtype for array in stored(result.model).values()} == {np.dtype(np.float16)}
    assert result.after is not None
    assert result.before is not None
    assert result.after < 0.7 * result.before
    before, after = (distance(model, pair, data) for model in (pair.pruned, result.model))
    assert after < 0.7 * before


def test_a_weight_of_layers_that_depend_on_each_other_is_left_alone() -> None:
    proto = graph_proto(
        "a = MatMul(x, w) r = Relu(a) b = MatMul(r, w) s = Relu(b) y = MatMul(s, c_w)",
        inputs="float[N,6] x",
        constants={"w": (6, 6), "c_w": (6, 3)},
    )
    masks = random_masks(proto, ["w", "c_w"])
    pair = masked_pair(proto, masks)
    result = repaired(pair, samples_for(pair.original), masks=masks)
    outcomes = {(layer.name, layer.tensor): layer.outcome for layer in result.layers}
    assert outcomes["n0", "w"] == outcomes["n2", "w"] == "its weight is shared with layers that depend on it"
    assert outcomes["n4", "c_w"] == "repaired"
    np.testing.assert_array_equal(stored(result.model)["w"], stored(pair.pruned)["w"])


def test_a_weight_of_two_towers_is_solved_once_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = graph_proto(
        "p = MatMul(x, w) q = MatMul(z, w) a = Add(p, b) c = Add(q, b) y = Sub(a, c)",
        inputs="float[N,6] x, float[N,6] z",
        outputs="y; a; c",
        constants={"w": (6, 4), "b": (4,)},
    )
    masks = random_masks(proto, ["w"])
    pair = masked_pair(proto, masks)
    data = samples_for(pair.original, 60)
    monkeypatch.setattr(solving.reconstruct, "__defaults__", (None, (1e-12,)))
    result = repaired(pair, data, masks=masks)
    assert [layer.outcome for layer in result.layers] == ["repaired", "repaired"]
    fit = np.concatenate([p.samples for p in portions_of(pair.original, data, 32, 0) if not p.held_out])
    samples = some(data, np.sort(fit))
    rows = np.concatenate([samples.arrays["x"], samples.arrays["z"]]).astype(np.float64)
    targets = np.concatenate(outputs(pair.original, samples)[1:]).astype(np.float64)
    with_one = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    found, support = stored(result.model)["w"], masks["w"].unpack()
    for output in range(4):
        places = np.append(np.flatnonzero(support[:, output]), 6)
        expected, *_ = lstsq(with_one[:, places], targets[:, output])
        np.testing.assert_allclose(found[places[:-1], output], expected[:-1], rtol=1e-4, atol=1e-4)
    assert not found[~support].any()
    before, after = (distance(model, pair, data) for model in (pair.pruned, result.model))
    assert after < 0.9 * before


def test_progress_ends_at_one() -> None:
    pair = cut_pair(mlp())
    shares: list[float] = []
    repaired(pair, samples_for(pair.original), progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len(shares) > 2
