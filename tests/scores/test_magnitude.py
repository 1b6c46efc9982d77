"""Magnitude scores against a naive loop, in every float type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from generated import generated_model

from onnxprune import score
from onnxprune.analyze import analyze
from onnxprune.errors import UsageError
from onnxprune.types import ChannelGroup, FloatArray, Member


def naive(model: ir.Model, group: ChannelGroup, power: int) -> FloatArray:
    """Add |w|**power, weight by weight, over all positions that belong to a channel."""
    total = np.zeros(group.size)
    for member in group.members:
        weights = model.graph.initializers[member.tensor].const_value.numpy()  # type: ignore[union-attr]
        if np.issubdtype(weights.dtype, np.integer) or weights.dtype == np.bool_:
            continue
        for place, channel in enumerate(member.channel_at):
            if channel >= 0:
                slab = np.take(weights, place, axis=member.axis).astype(np.float64)
                total[channel] += (np.abs(slab) ** power).sum()
    return total if power == 1 else np.sqrt(total)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("scorer", "power"), [("l1", 1), ("l2", 2)])
def test_the_formula_on_generated_graphs(seed: int, scorer: str, power: int) -> None:
    analysis = analyze(ir.from_proto(generated_model(seed, 4)))
    scores = score(analysis.model, analysis.groups, scorer)
    assert scores.scorer == scorer
    assert set(scores.channels) == {group.name for group in analysis.groups if group.frozen is None}
    for group in analysis.groups:
        if group.frozen is None:
            assert scores.channels[group.name].dtype == np.float64
            np.testing.assert_allclose(
                scores.channels[group.name], naive(analysis.model, group, power), rtol=1e-5
            )


def one_tensor(weights: np.ndarray, axis: int = 0) -> tuple[ir.Model, ChannelGroup]:
    model = graph("y = Identity(x)", inputs="float[2] x")
    tensor = ir.tensor(weights, name="w")
    value = ir.Value(name="w", shape=ir.Shape(weights.shape), const_value=tensor)
    value.dtype = tensor.dtype
    model.graph.register_initializer(value)
    channel_at = np.arange(weights.shape[axis], dtype=np.int32)
    member = Member("w", axis, channel_at, contracted=False, consumer="n0")
    return model, ChannelGroup("w", "channels", len(channel_at), (member,))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("scorer", "power"), [("l1", 1), ("l2", 2)])
def test_float_types(dtype: type, axis: int, scorer: str, power: int) -> None:
    weights = np.random.default_rng(0).standard_normal((4, 5, 6)).astype(dtype)
    model, group = one_tensor(weights, axis)
    found = score(model, [group], scorer).channels["w"]
    np.testing.assert_allclose(found, naive(model, group, power), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_large_weights_do_not_overflow(dtype: type) -> None:
    """Squares of these are beyond the type, their root is not."""
    largest = {np.float16: 6e4, ml_dtypes.bfloat16: 1e38, np.float32: 1e38, np.float64: 1e150}[dtype]
    weights = np.full((3, 8), largest, dtype)
    weights[1] /= 2
    model, group = one_tensor(weights)
    found = score(model, [group], "l2").channels["w"]
    np.testing.assert_allclose(found, weights[:, 0].astype(np.float64) * np.sqrt(8), rtol=1e-3)


def test_tiny_weights_keep_their_order() -> None:
    """Channels that weight decay has almost emptied are still told apart."""
    weights = np.array([[2e-18] * 4, [1e-18] * 4], np.float32)
    model, group = one_tensor(weights)
    found = score(model, [group], "l2").channels["w"]
    assert found[0] > found[1] > 0


def test_ties_are_exact() -> None:
    """Equal channels score equally, so that a tie is decided by the index and not by rounding."""
    row = np.random.default_rng(3).standard_normal(37).astype(np.float32)
    model, group = one_tensor(np.stack([row] * 9))
    for scorer in ("l1", "l2"):
        assert len(np.unique(score(model, [group], scorer).channels["w"])) == 1


def test_positions_of_other_groups_do_not_count() -> None:
    weights = np.arange(12, dtype=np.float32).reshape(4, 3)
    model, _ = one_tensor(weights)
    channel_at = np.array([1, -1, 0, 1], np.int32)
    group = ChannelGroup("g", "hidden", 2, (Member("w", 0, channel_at, contracted=True, consumer="n0"),))
    found = score(model, [group], "l1").channels["g"]
    np.testing.assert_allclose(found, [6 + 7 + 8, 0 + 1 + 2 + 9 + 10 + 11])


def test_integers_do_not_count() -> None:
    model, group = one_tensor(np.arange(6, dtype=np.int64).reshape(3, 2))
    np.testing.assert_array_equal(score(model, [group], "l2").channels["w"], np.zeros(3))


def test_frozen_groups_are_not_scored() -> None:
    model, group = one_tensor(np.ones((3, 2), np.float32))
    frozen = ChannelGroup("f", "channels", 3, group.members, frozen="for the test")
    assert list(score(model, [group, frozen]).channels) == ["w"]


def test_random_is_drawn_from_its_seed() -> None:
    model, group = one_tensor(np.ones((50, 2), np.float32))
    first, again, other = (score(model, [group], "random", seed=s).channels["w"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert ((first >= 0) & (first < 1)).all()
    assert len(np.unique(first)) == 50


def test_an_unknown_scorer_is_named() -> None:
    model, group = one_tensor(np.ones((3, 2), np.float32))
    with pytest.raises(UsageError, match="l3"):
        score(model, [group], "l3")
