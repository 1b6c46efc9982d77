"""Importance of channels from data: what the outputs of the model lose when one channel is zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.messages import quoted
from onnxprune.model.float32 import in_float32
from onnxprune.model.names import Names
from onnxprune.ops.channels import Contraction
from onnxprune.ops.labels import LabelArray
from onnxprune.runtime import Session, open_session
from onnxprune.scores.subject import Subject, has_numbers, measurable_values, owners_of, sides_of
from onnxprune.types import ChannelGroup, FloatArray

#: Every channel costs a run for each batch.
MOST_CHANNELS = 4096

#: Outputs of one batch that are held at once, in float64: expected, as they came, found, and differences.
_HELD = 5


def change_of_outputs(subject: Subject) -> Mapping[str, FloatArray]:
    """score[c] = sum over outputs of |y(without c) - y|**2 / |y|**2, over all samples

    A channel is taken out as a cut takes it out: every sum over it runs on zeros in its places. This is the
    forward-only counterpart of the gradients of Michel et al. 2019, "Are Sixteen Heads Really Better than
    One?": measured instead of extrapolated, without labels, at one run for each channel and batch. Channels
    are taken out one at a time, so two that do the same both look dispensable. Batches are made smaller where
    their outputs would exceed ``subject.running.limit_bytes``.

    Raises:
        UsageError: there are more than `MOST_CHANNELS` channels.
        DataError: the data does not fit the model, or makes it compute what is not finite.
        LimitMissed: the outputs of a single sample (or fixed batch) exceed the limit.
    """
    masked = _Masked.of(subject)
    trials = [(group, channel) for group in masked.groups for channel in range(group.size)]
    if len(trials) > MOST_CHANNELS:
        raise UsageError(
            f"score 'ablation' runs the model once for each of {len(trials)} channels and each batch: take "
            f"activation or wanda, or at most {MOST_CHANNELS} channels (as of --pattern heads)"
        )
    if not trials:
        return {}
    lost = {group.name: np.zeros((group.size, len(masked.outputs))) for group in masked.groups}
    whole = np.zeros(len(masked.outputs))
    session = open_session(masked.model, threads=subject.running.threads)
    size = _batch_within_limit(masked, session, subject)
    batches = list(feeds_by_batch(subject.model, subject.data, batch=size))
    for done, (_, feeds) in enumerate(batches):
        reference = masked.run(session, feeds, None, 0, subject)
        whole += [float(np.square(output).sum()) for output in reference]
        for number, (group, channel) in enumerate(trials, start=1):
            outputs = masked.run(session, feeds, group, channel, subject)
            lost[group.name][channel] += [
                float(np.square(output - expected).sum())
                for output, expected in zip(outputs, reference, strict=True)
            ]
            if subject.progress is not None:
                subject.progress((done + number / len(trials)) / len(batches))
    return {name: (figures / np.where(whole > 0, whole, 1)).sum(axis=1) for name, figures in lost.items()}


def _batch_within_limit(masked: _Masked, session: Session, subject: Subject) -> int:
    """Return the samples of one run."""
    _, feeds = next(iter(feeds_by_batch(subject.model, subject.data, batch=1)))
    outputs = masked.run(session, feeds, None, 0, subject)
    needed = _HELD * sum(output.nbytes for output in outputs)
    limit = subject.running.limit_bytes
    if needed > limit:
        raise LimitMissed(
            f"the outputs of one batch take {needed} bytes, more than the limit of {limit}; raise the limit "
            "to that"
        )
    return max(1, min(subject.running.batch, subject.running.limit_bytes // max(1, needed)))


@dataclass(frozen=True, slots=True)
class _Mask:
    """An input that one operand of a sum is multiplied with.

    Attributes:
        name: of the input.
        shape: of ones, but for the axis that is summed over.
        labels: int32 [dim, k] of that axis.
    """

    name: str
    shape: tuple[int, ...]
    labels: LabelArray


@dataclass(frozen=True, slots=True)
class _Masked:
    """A copy of the model in which every sum over the groups' channels has a mask as an input.

    Attributes:
        model: the copy, in float32.
        masks: the masks.
        groups: the groups whose every sum could be given one.
        outputs: names of the outputs that hold floats.
    """

    model: ir.Model
    masks: Sequence[_Mask]
    groups: Sequence[ChannelGroup]
    outputs: Sequence[str]

    @classmethod
    def of(cls, subject: Subject) -> _Masked:
        """Put the masks into a copy."""
        copy = in_float32(subject.model).clone()
        nodes = {node.name: node for node in copy.graph}
        names = Names(copy.graph)
        masks: list[_Mask] = []
        unmasked: set[str] = set()
        measurable = measurable_values(subject.model)
        for contraction, touched in _contractions(subject):
            operand = _operand(subject, contraction, measurable)
            if operand is None or contraction.node.graph is not subject.model.graph:
                unmasked |= {group.name for group in touched}
                continue
            index, axis, labels = operand
            rank = subject.channels.rank(subject.channels.ref(contraction.node, index))
            shape = tuple(len(labels) if place == axis else 1 for place in range(rank))
            mask = _Mask(names.fresh(f"mask_{len(masks)}"), shape, labels)
            _multiply(copy.graph, nodes[contraction.node.name], index, mask, names)
            masks.append(mask)
        outputs = [str(value.name) for value in copy.graph.outputs if has_numbers(value)]
        groups = [group for group in subject.groups if group.name not in unmasked]
        return cls(copy, masks, groups, outputs)

    def run(
        self,
        session: Session,
        feeds: Mapping[str, np.ndarray],
        group: ChannelGroup | None,
        channel: int,
        subject: Subject,
    ) -> list[FloatArray]:
        """Return the outputs, float64, without one channel of a group; those of the model for no group."""
        gone = None if group is None else subject.units[group.name][channel]
        masks = {
            mask.name: (~(mask.labels == gone).any(axis=1)).astype(np.float32).reshape(mask.shape)
            for mask in self.masks
        }
        results = session.run({**feeds, **masks}, self.outputs)
        arrays = [results[name].astype(np.float64) for name in self.outputs]
        for name, array in zip(self.outputs, arrays, strict=True):
            if not np.isfinite(array).all():
                without = "" if group is None else f" without channel {channel} of {group.name}"
                raise DataError(
                    f"{subject.data.source}: output {quoted(name)} is not finite on this data{without}"
                )
        return arrays


def _contractions(subject: Subject) -> Iterator[tuple[Contraction, list[ChannelGroup]]]:
    """Yield every sum that runs over channels of some of the groups, and these groups."""
    owners = owners_of(subject)
    for contraction in subject.channels.contractions:
        sides = sides_of(subject.channels, contraction)
        numbers = sorted({number for side in sides for number, _ in owners.of(side.labels)})
        if numbers:
            yield contraction, [subject.groups[number] for number in numbers]


def _operand(
    subject: Subject, contraction: Contraction, measurable: set[ir.Value]
) -> tuple[int, int, LabelArray] | None:
    """Return what to mask: an operand that depends on the inputs rather than a weight, if it holds floats."""
    sides = sides_of(subject.channels, contraction)
    values = [(side, contraction.node.inputs[side.operand]) for side in sides]
    fitting = [(side, value) for side, value in values if value is not None and has_numbers(value)]
    fitting.sort(key=lambda pair: pair[1] not in measurable)
    return next(((side.operand, side.axis, side.labels) for side, _ in fitting), None)


def _multiply(graph: ir.Graph, node: ir.Node, index: int, mask: _Mask, names: Names) -> None:
    value = node.inputs[index]
    name = mask.name
    given = ir.Value(name=name, shape=ir.Shape(mask.shape), type=ir.TensorType(ir.DataType.FLOAT))
    graph.inputs.append(given)
    product = ir.node("Mul", [value, given], name=names.fresh(f"{name}_product"))
    product.outputs[0].name = names.fresh(f"{name}_masked")
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph.insert_before(node, product)
    node.replace_input_with(index, product.outputs[0])
