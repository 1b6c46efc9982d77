"""fpgm, lamp and bn against naive loops."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph
from generated import generated_model

from onnxprune import plan, prune, score
from onnxprune.analyze import analyze
from onnxprune.errors import NothingToPrune
from onnxprune.scores import filters
from onnxprune.scores.filters import places_of
from onnxprune.types import ChannelGroup, FloatArray


def scored(model: ir.Model, scorer: str) -> tuple[ir.Model, list[ChannelGroup], dict[str, FloatArray]]:
    analysis = analyze(model)
    groups = [group for group in analysis.groups if group.frozen is None]
    return analysis.model, groups, dict(score(analysis.model, groups, scorer).channels)


def stored(model: ir.Model, name: str) -> FloatArray:
    return model.graph.initializers[name].const_value.numpy().astype(np.float64)  # type: ignore[union-attr]


def naive_distances(model: ir.Model, group: ChannelGroup) -> FloatArray:
    """Compare every filter with every other one, weight by weight."""
    total = np.zeros(group.size)
    for member in group.members:
        weights = stored(model, member.tensor)
        if member.contracted or sum(size > 1 for size in weights.shape) < 2:
            continue
        for c in range(group.size):
            mine = np.take(weights, np.flatnonzero(member.channel_at == c), axis=member.axis)
            for d in range(group.size):
                other = np.take(weights, np.flatnonzero(member.channel_at == d), axis=member.axis)
                total[c] += np.sqrt(((mine - other) ** 2).sum())
    return total


@pytest.mark.parametrize("piece", [1 << 24, 64])
@pytest.mark.parametrize(
    "make",
    [small_models.residual_net, small_models.depthwise_net, small_models.attention, small_models.concat_net],
)
def test_distances_between_filters(make, piece, monkeypatch):
    monkeypatch.setattr(filters, "_PIECE", piece)
    model, groups, found = scored(ir.from_proto(make()), "fpgm")
    assert found
    for group in groups:
        np.testing.assert_allclose(found[group.name], naive_distances(model, group), rtol=1e-6)


def test_a_filter_amid_the_others_goes_before_a_smaller_one():
    weights = np.array([[4, 4], [6, 4], [4, 6], [5, 5], [6, 6], [0.1, 0.1]], np.float32)
    model = graph(
        "h = Gemm<transB=1>(x, w1)\n r = Relu(h)\n y = Gemm(r, w2)",
        inputs="float[N,2] x",
        constants={"w1": weights, "w2": (6, 3)},
    )
    decided = plan(model, score="fpgm", amount=1 / 6, align=1)
    assert [group.removed.tolist() for group in decided.groups if group.size == 6] == [[3]]
    _, _, found = scored(model, "fpgm")
    (values,) = found.values()
    assert values.argmax() == 5


def test_small_distances_between_large_filters():
    """The products of these filters have no digits left for what they differ by."""
    weights = np.full((6, 50), 12345.678, np.float32)
    weights[0, 0] = np.nextafter(weights[0, 0], np.float32(np.inf))
    apart = float(weights[0, 0]) - float(weights[1, 0])
    model = graph(
        "h = Gemm<transB=1>(x, w1)\n r = Relu(h)\n y = Gemm(r, w2)",
        inputs="float[N,50] x",
        constants={"w1": weights, "w2": (6, 3)},
    )
    _, _, found = scored(model, "fpgm")
    (values,) = found.values()
    np.testing.assert_allclose(values, [5 * apart, *[apart] * 5], rtol=1e-6)


def test_places_of_channels():
    assert places_of(np.array([1, 0, -1, 1, 1], np.int32), 3).tolist() == [[1, -1, -1], [0, 3, 4], [-1] * 3]
    assert places_of(np.array([-1, -1], np.int32), 2).tolist() == [[-1], [-1]]


def test_lamp_is_the_share_of_what_is_left():
    _, groups, energies = scored(ir.from_proto(small_models.residual_net()), "l2")
    _, _, found = scored(ir.from_proto(small_models.residual_net()), "lamp")
    for group in groups:
        energy = energies[group.name] ** 2
        expected = [e / energy[energy >= e].sum() for e in energy]
        np.testing.assert_allclose(found[group.name], expected, rtol=1e-6)
        assert found[group.name].max() == 1


def test_lamp_of_channels_without_weights():
    model = graph(
        "h = Gemm<transB=1>(x, w1)\n r = Relu(h)\n y = Gemm(r, w2)",
        inputs="float[N,5] x",
        constants={"w1": np.zeros((4, 5), np.float32), "w2": np.zeros((4, 3), np.float32)},
    )
    (group,) = (group for group in analyze(model).groups if group.size == 4)
    (values,) = score(model, [group], "lamp").channels.values()
    assert values.tolist() == [0, 0, 0, 0]


def test_bn_adds_the_scales_of_all_norms():
    model, groups, found = scored(ir.from_proto(small_models.residual_net()), "bn")
    sums = {
        "stem": ("stem_bn", "block1.bn2", "block2.bn2"),
        "block1.conv1": ("block1.bn1",),
        "block2.conv1": ("block2.bn1",),
    }
    assert {group.name for group in groups} == set(sums)
    for name, norms in sums.items():
        expected = sum(np.abs(stored(model, f"{norm}.weight")) for norm in norms)
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)


@pytest.mark.parametrize(
    "norm", ["InstanceNormalization(h, scale, bias)", "GroupNormalization<num_groups=8>(h, scale, bias)"]
)
def test_other_norms_scale_channels_too(norm):
    scale = np.array([3, -1, 2, 0.5, 4, -6, 7, 0.1], np.float32)
    model = graph(
        f"h = Conv(x, w1)\n n = {norm}\n r = Relu(n)\n k = Conv(r, w2)\n y = Relu(k)",
        constants={"w1": (8, 3, 1, 1), "scale": scale, "bias": (8,), "w2": (4, 8, 1, 1)},
        opset=21,
    )
    _, _, found = scored(model, "bn")
    (values,) = (values for values in found.values() if len(values) == 8)
    np.testing.assert_allclose(values, np.abs(scale), rtol=1e-6)


def test_groups_without_norms_stay_and_say_why():
    with pytest.raises(NothingToPrune, match="exporters fold BatchNormalization into") as caught:
        prune(ir.from_proto(small_models.depthwise_net()), amount=0.5, score="bn")
    assert sum("exporters fold" in reason for reason in caught.value.reasons) >= 2
    with pytest.raises(NothingToPrune, match="exporters fold"):
        prune(ir.from_proto(small_models.depthwise_net()), target_macs=0.5, score="bn")


@pytest.mark.parametrize("scorer", ["fpgm", "lamp", "bn"])
@pytest.mark.parametrize("seed", range(6))
def test_generated_models_get_figures_or_reasons(scorer, seed):
    analysis = analyze(ir.from_proto(generated_model(seed, 8)))
    found = score(analysis.model, analysis.groups, scorer)
    open_groups = {group.name: group.size for group in analysis.groups if group.frozen is None}
    assert found.channels.keys() | found.unmeasured.keys() == open_groups.keys()
    for name, values in found.channels.items():
        assert values.shape == (open_groups[name],)
        assert np.isfinite(values).all()
        assert (values >= 0).all()
