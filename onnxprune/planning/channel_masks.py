"""Channels as masks: which weights are zero for channels that go later, so that a model learns without.

A zero in what a weight sums over equals a cut there. Where channels are summed over by weights alone, the
zeros are held while the model is tuned, and the cut at the end changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.messages import quoted
from onnxprune.ops.channels import Channels, Contraction, Use
from onnxprune.rewrite.twin import kept_terms
from onnxprune.types import BoolArray, IntArray

#: What else there is to do.
_INSTEAD = "cut it round by round instead (--rounds)"


def reasons_to_cut(analysis: Analysis, trained: Collection[str]) -> dict[str, str]:
    """Return why zeros in weights can't stand for a cut of a group, by name; those where they can are absent.

    Args:
        analysis: of the model.
        trained: stored names of the weights in which zeros can be held.
    """
    channels = analysis.channels
    group_of = np.full(channels.labels.count, -1, np.int64)
    for number, group in enumerate(analysis.groups):
        group_of[analysis.units[group.name]] = number
    reasons: dict[str, str] = {
        group.name: f"a statistic over them changes with a cut, and not with zeros: {_INSTEAD}"
        for group in analysis.groups
        if not group.exact
    }
    for contraction in channels.contractions:
        why = _why_not(contraction, channels, trained)
        if why is None:
            continue
        for number in np.unique(group_of[_labels(contraction, channels)]).tolist():
            if number >= 0:
                reasons.setdefault(analysis.groups[number].name, f"{why}: {_INSTEAD}")
    return reasons


def zeros_of(analysis: Analysis, removed: Mapping[str, IntArray]) -> dict[str, BoolArray]:
    """Return what stays of each weight that sums over removed channels, by stored name, in its shape.

    Args:
        analysis: of the model.
        removed: int32 channel numbers by group name, of groups without `reasons_to_cut`.
    """
    gone = analysis.removed_labels(removed)
    found: dict[str, BoolArray] = {}
    for contraction in analysis.channels.contractions:
        kept = kept_terms(analysis.channels, contraction, gone)
        if kept.all():
            continue
        value = _operand(contraction)
        shape = analysis.channels.shape(value)
        name = str(value.name)
        found[name] = found.get(name, np.ones(shape, np.bool_)) & kept
    return found


def _operand(contraction: Contraction) -> ir.Value:
    value = contraction.node.inputs[contraction.operand]
    if value is None:
        raise ValueError(f"{contraction.node.name} lacks input {contraction.operand}")
    return value


def _why_not(contraction: Contraction, channels: Channels, trained: Collection[str]) -> str | None:
    node, value = contraction.node, _operand(contraction)
    if contraction.axis is None or contraction.zero_point is not None:
        return f"{node.name} computes with quantized numbers"
    if not value.is_initializer():
        return f"{node.name} sums over them without a weight that could be zero"
    if str(value.name) not in trained:
        return f"{quoted(value.name)}, which sums over them, is not trained"
    labels = _labels(contraction, channels)
    for other, index in value.uses():
        if (other, index) == (node, contraction.operand):
            continue
        block = channels.block_at(Use(other, index), contraction.axis)
        if (
            block is None
            or len(block.axes) > 1
            or not np.array_equal(channels.labels.resolve(block.labels).reshape(-1), labels)
        ):
            return f"{quoted(value.name)}, which sums over them, serves {other.name} too"
    return None


def _labels(contraction: Contraction, channels: Channels) -> IntArray:
    """Return the resolved labels ``[dim, k]`` that a node sums over; those of all axes for a range."""
    ref = channels.ref(contraction.node, contraction.operand)
    if contraction.axis is not None:
        labels = channels.alone(ref, contraction.axis)
        blocks = [] if labels is None else [labels]
    else:
        blocks = [block.labels for block in channels.blocks.get(ref, [])]
    flat = [channels.labels.resolve(labels).reshape(-1) for labels in blocks]
    return np.concatenate(flat) if flat else np.zeros(0, np.int32)
