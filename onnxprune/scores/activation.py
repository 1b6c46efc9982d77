"""Importance of channels from data: the energy of what their consumers sum up, alone or times the weights.

A channel is removed by leaving its terms out of sums ``y = sum_c x_c * w_c``. What is lost is what the terms
added up to on real inputs; a channel with large weights that is never active adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.activations import mean_squares
from onnxprune.errors import DataError
from onnxprune.messages import quoted
from onnxprune.ops.constant_views import computed_constants
from onnxprune.ops.registry import rule_for
from onnxprune.scores.subject import Subject, Sum, has_numbers, main_values, owners_of, sums_of
from onnxprune.types import FloatArray


def energy(subject: Subject) -> Mapping[str, FloatArray]:
    """score[c] = sum over all consumers, and over the places of c in their input x, of the mean of x**2

    The mean runs over samples and positions. A head has one place for each of its values, and what is summed
    up in a consumer of several layers (a query, a key and a value projection, say) counts for each of them.
    """
    sums = list(sums_of(subject))
    means = _means(subject, [(each, each.x, _others(subject, each.x, each.axis)) for each in sums])
    return _totals(subject, list(zip(sums, means, strict=True)))


def weighted_energy(subject: Subject) -> Mapping[str, FloatArray]:
    """score[c] = sqrt(sum over all consumers and places i of c of mean(x_i**2) * sum over outputs of w_i**2)

    The l2 norm of the scores ``|w| * ||x||`` of the weights that sum over the channel (Sun et al. 2023, "A
    Simple and Effective Pruning Approach for Large Language Models", eq. 1): the root of the energy that the
    outputs of the consumers lose if the x_i are not correlated. Where w is itself computed from the inputs,
    as in a product of queries and keys, its mean energy times the number of outputs stands for the sum.
    """
    constants, tapped = computed_constants(subject.model), main_values(subject.model)
    pairs = [
        (each, weights)
        for each in sums_of(subject)
        if (weights := _weights_of(subject, each, constants)) is not None
        and (weights.sums is not None or each.other in tapped)
    ]
    wanted = [(each, each.x, _others(subject, each.x, each.axis)) for each, _ in pairs]
    wanted += [
        (each, each.other, weights.summed)
        for each, weights in pairs
        if weights.sums is None and each.other is not None
    ]
    means = iter(_means(subject, wanted))
    inputs = [next(means) for _ in pairs]
    products = [
        (each, x * weights.by_position(next(means) if weights.sums is None else None, len(x)))
        for (each, weights), x in zip(pairs, inputs, strict=True)
    ]
    return {name: np.sqrt(total) for name, total in _totals(subject, products).items()}


# --- measuring ----------------------------------------------------------------------------------------------


def _others(subject: Subject, value: ir.Value, *axes: int) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(subject.channels.shape(value))) if axis not in axes)


def _means(subject: Subject, wanted: Sequence[tuple[Sum, ir.Value, tuple[int, ...]]]) -> Sequence[FloatArray]:
    """Return the mean squares of values over axes; what is not finite is an error that names the consumer."""
    if not wanted:
        return []
    names = [(str(value.name), axes) for _, value, axes in wanted]
    running = subject.running
    found = mean_squares(
        subject.model, names, subject.data,
        batch=running.batch, limit_bytes=running.limit_bytes, threads=running.threads,
        progress=subject.progress,
    )  # fmt: skip
    for (each, _, _), means in zip(wanted, found, strict=True):
        if not np.isfinite(means).all():
            raise DataError(
                f"{subject.data.source}: on this data the input of {quoted(each.node.name)} holds NaN, "
                "infinity, or numbers too large to square"
            )
    return found


def _totals(subject: Subject, measured: Sequence[tuple[Sum, FloatArray]]) -> dict[str, FloatArray]:
    """Add figures [positions] of inputs up by channel."""
    totals: dict[str, FloatArray] = {}
    owners = owners_of(subject)
    for each, figures in measured:
        for number, channel_at in owners.of(each.labels):
            group, mine = subject.groups[number], channel_at >= 0
            sums = np.bincount(channel_at[mine], figures[mine], minlength=group.size)
            totals[group.name] = totals.get(group.name, np.zeros(group.size)) + sums
    return totals


# --- the weights beside an input ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Weights:
    """The energy of the operand that an input is multiplied with, or how to measure it.

    Attributes:
        sums: w**2 summed over all axes but those that stay, None where it has to be measured.
        summed: the axes over which its mean is measured otherwise.
        scale: from that mean to the sum.
    """

    sums: FloatArray | None
    summed: tuple[int, ...]
    scale: float

    def by_position(self, means: FloatArray | None, size: int) -> FloatArray:
        """Return float64 [size]: w**2 summed over the outputs that each position of the input adds to.

        In a grouped layout, ``[outputs, places in a group]`` becomes ``[groups * places]``: a group of
        outputs sums over its own part of the input.
        """
        sums = self.sums
        if sums is None:
            if means is None:
                raise ValueError("neither known nor measured")
            sums = means * self.scale
        if sums.ndim == 1:
            return sums
        outputs, places = sums.shape
        groups = size // places
        return np.asarray(sums.reshape(groups, outputs // groups, places).sum(axis=1).reshape(size))


def _weights_of(subject: Subject, each: Sum, constants: set[ir.Value]) -> _Weights | None:
    """Return the weights of a sum; None where they can't be read or do not lie along the input."""
    if each.other is None:
        return _Weights(np.ones(len(each.labels)), (), 1.0)
    if not has_numbers(each.other):
        return None
    shape = subject.channels.shape(each.other)
    axis, outputs = each.other_axis, _output_axis(subject, each)
    stay: tuple[int, ...] = (axis,)
    if shape[axis] != len(each.labels):
        if outputs is None or outputs > axis or len(each.labels) % shape[axis]:
            return None
        stay = (outputs, axis)
    summed = _others(subject, each.other, *stay)
    tensor = each.other.const_value
    if each.other.is_initializer() and tensor is not None:
        squares = np.square(tensor.numpy().astype(np.float64))
        return _Weights(np.asarray(squares.sum(axis=summed)), summed, 1.0)
    if each.other in constants:
        return _Weights(None, summed, float(math.prod(shape[place] for place in summed)))
    return _Weights(None, summed, 1.0 if outputs is None else float(shape[outputs]))


def _output_axis(subject: Subject, each: Sum) -> int | None:
    """Return the axis of the other operand that indexes outputs, None if the rule of the node names none."""
    rule = rule_for(each.node)
    rank = subject.channels.rank
    found = () if rule is None else rule.weight_inputs(each.node, lambda value: rank(value))
    return next((weight.output_axis for weight in found if weight.index == each.other_index), None)
