"""Channels as masks: with these zeros a model computes what the cut does, or says why it does not."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from onnxprune.analyze import Analysis, analyze
from onnxprune.model.copies import copy_of
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.ops.sums import Sums
from onnxprune.planning.channel_masks import reasons_to_cut, zeros_of
from onnxprune.proving import Trials, compare, make_cut
from onnxprune.rewrite.mask import apply_masks
from onnxprune.types import Check, IntArray, Mask

GOLDEN = sorted((Path(__file__).resolve().parents[1] / "golden" / "models").glob("*.onnx.gz"))
SMALL = ("residual_net", "depthwise_net", "concat_net", "mlp", "attention")


def floats(model: ir.Model) -> set[str]:
    return {
        name
        for name, values in stored_values(model).items()
        if tensor_of(values[0]).dtype.is_floating_point()
    }


def third(analysis: Analysis, names: list[str]) -> dict[str, IntArray]:
    """A random third of the channels of some groups."""
    random = np.random.default_rng(0)
    sizes = {group.name: group.size for group in analysis.groups if group.name in names}
    return {
        name: np.sort(random.permutation(size)[: max(1, size // 3)]).astype(np.int32)
        for name, size in sizes.items()
        if size > 1
    }


def masked_beside_cut(analysis: Analysis, removed: dict[str, IntArray]) -> Check:
    masked = copy_of(analysis.given)
    apply_masks(masked, {name: Mask.pack(kept) for name, kept in zeros_of(analysis, removed).items()})
    # of the masked model, so that no constant of a channel that goes is folded into what stays
    again = analyze(masked)
    cut = make_cut(again, Sums(again.model.graph, again.channels), removed)
    return compare(masked, masked, cut.pruned, analysis.shapes.input_shapes, Trials(0))


def maskable(analysis: Analysis) -> list[str]:
    reasons = reasons_to_cut(analysis, floats(analysis.given))
    return [group.name for group in analysis.groups if group.frozen is None and group.name not in reasons]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name.partition(".")[0])
def test_zeros_equal_the_cut_in_every_architecture(path: Path) -> None:
    analysis = analyze(ir.from_proto(onnx.load_from_string(gzip.decompress(path.read_bytes()))))
    removed = third(analysis, maskable(analysis))
    if not removed:
        pytest.skip("no group of it can be masked")
    check = masked_beside_cut(analysis, removed)
    assert check.passed, check.detail


@pytest.mark.parametrize("name", SMALL)
def test_all_open_groups_of_usual_networks_can_be_masked(name: str) -> None:
    analysis = analyze(ir.from_proto(getattr(small_models, name)()))
    able = maskable(analysis)
    assert able == [group.name for group in analysis.groups if group.frozen is None]
    assert masked_beside_cut(analysis, third(analysis, able)).passed


def test_what_two_activations_sum_over_has_no_weight_to_mask() -> None:
    analysis = analyze(ir.from_proto(small_models.attention()), prefer="head_dim")
    reasons = reasons_to_cut(analysis, floats(analysis.given))
    assert [why for why in reasons.values() if "without a weight" in why]
    assert not zeros_do_all_the_same(analysis, list(reasons))


def zeros_do_all_the_same(analysis: Analysis, names: list[str]) -> bool:
    """Whether zeros would do all the same: they must not, or the refusal is too cautious."""
    removed = third(analysis, names)
    masked = copy_of(analysis.given)
    apply_masks(
        masked,
        {
            name: Mask.pack(kept)
            for name, kept in zeros_of(analysis, removed).items()
            if name in floats(analysis.given)
        },
    )
    cut = make_cut(analysis, Sums(analysis.model.graph, analysis.channels), removed)
    return compare(masked, masked, cut.pruned, analysis.shapes.input_shapes, Trials(0)).passed


def test_a_weight_that_serves_others_too_is_not_masked() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[N, 6] x, float[8, 5] z) => (float[N, 5] y, float[8, 5] scaled)
        <float[6, 8] a, float[8, 5] shared>
        { h = MatMul(x, a) r = Relu(h) y = MatMul(r, shared) scaled = Mul(z, shared) }
    """)
    random = np.random.default_rng(0)
    for name, shape in (("a", (6, 8)), ("shared", (8, 5))):
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    del proto.graph.value_info[:]
    analysis = analyze(ir.from_proto(proto))
    (group,) = [group for group in analysis.groups if group.frozen is None]
    assert "'shared', which sums over them, serves" in reasons_to_cut(analysis, {"a", "shared"})[group.name]
    assert not zeros_do_all_the_same(analysis, [group.name])


def test_a_weight_that_is_not_trained_is_named() -> None:
    analysis = analyze(ir.from_proto(small_models.mlp()))
    reasons = reasons_to_cut(analysis, ())
    assert reasons
    assert all("is not trained" in why for why in reasons.values())


def test_statistics_are_cut_not_masked() -> None:
    analysis = analyze(ir.from_proto(small_models.attention()), allow_inexact=True)
    inexact = [group.name for group in analysis.groups if not group.exact]
    reasons = reasons_to_cut(analysis, floats(analysis.given))
    assert all("statistic" in reasons[name] for name in inexact)
