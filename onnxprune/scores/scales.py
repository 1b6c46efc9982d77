"""Importance of channels from the scales that normalisation gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxprune.ops.dequantized import real_numbers
from onnxprune.ops.registry import rule_for
from onnxprune.types import ChannelGroup, FloatArray, Member

_NOTHING = (
    "score 'bn' finds no normalisation that scales these channels: exporters fold BatchNormalization into "
    "the convolution before it; export without that, or take another score"
)


def scale_of_normalisation(
    model: ir.Model, groups: Iterable[ChannelGroup], _seed: int
) -> Mapping[str, FloatArray | str]:
    """score[c] = sum of abs(gamma[c]) over all normalisations that scale channel c

    gamma is what a BatchNormalization, or a norm over instances, groups or layers, multiplies channel c with
    after bringing it to variance 1 (Liu et al. 2017, "Learning Efficient Convolutional Networks through
    Network Slimming", section 3, without the penalty in training).
    """
    nodes = {str(node.name): node for node in model.graph.all_nodes()}
    scores: dict[str, FloatArray | str] = {}
    for group in groups:
        scales = [
            (member.channel_at, scale)
            for member in group.members
            if (scale := _scale(model, nodes[member.consumer], member)) is not None
        ]
        if not scales:
            scores[group.name] = _NOTHING
            continue
        total = np.zeros(group.size)
        for channel_at, scale in scales:
            mine = channel_at >= 0
            total += np.bincount(channel_at[mine], scale[mine], minlength=group.size)
        scores[group.name] = total
    return scores


def _scale(model: ir.Model, node: ir.Node, member: Member) -> FloatArray | None:
    """Return abs(gamma), float64 [dim], if a member is the scale of a normalisation."""
    rule = rule_for(node)
    index = None if rule is None else rule.scale_input
    if index is None or index >= len(node.inputs) or node.inputs[index] is None:
        return None
    stored = model.graph.initializers[member.tensor]
    numbers = real_numbers(stored) if node.inputs[index] is stored else None
    if numbers is None:
        return None
    others = tuple(axis for axis in range(numbers.ndim) if axis != member.axis)
    return np.asarray(np.abs(numbers.astype(np.float64)).sum(axis=others))
