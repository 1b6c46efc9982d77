"""Operators that read positions by number, order or content: what they read stays, other axes pass."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.ops.base import OpRule, op_rule
from onnxprune.ops.channels import Channels, Ref
from onnxprune.ops.kept import Kept


def _pass_others(
    channels: Channels, node: ir.Node, stays: set[int], reason: str, axis_map: dict[int, int] | None = None
) -> None:
    """Freeze some axes of the first input, and hand the labels of its other axes to all outputs."""
    x = channels.ref(node, 0)
    for axis in stays:
        channels.freeze_axis(x, axis, reason)
    others = axis_map or {axis: axis for axis in range(channels.rank(x)) if axis not in stays}
    channels.label_constant(x, others)
    for output in node.outputs:
        if output.name:
            channels.copy(x, output, others)


@op_rule("CumProd", "CumSum", "ReverseSequence", "TopK", "Trilu")
class Ordered(OpRule):
    """y = x summed up, sorted, reversed or masked along some axes, by the order of positions"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """A position along these axes means its place among the others."""
        rank = channels.rank(channels.ref(node, 0))
        _pass_others(
            channels, node, self._axes(node, channels, rank), f"{node.name} needs the order along it"
        )
        for index in range(1, len(node.inputs)):
            if channels.has(node, index):
                channels.freeze_all(channels.ref(node, index), f"{node.name} reads sizes or axes from it")

    def _axes(self, node: ir.Node, channels: Channels, rank: int) -> set[int]:
        if node.op_type == "Trilu":
            return {rank - 2, rank - 1}
        if node.op_type == "TopK":
            return {node.attributes.get_int("axis", -1) % rank}
        if node.op_type == "ReverseSequence":
            return {node.attributes.get_int("batch_axis", 1), node.attributes.get_int("time_axis", 0)}
        axis = channels.constant(node, 1)
        return set(range(rank)) if axis is None else {int(axis.item()) % rank}


@op_rule("OneHot")
class OneHot(OpRule):
    """y[..., v, ...] = on where v is indices[...], else off: a vocabulary axis that no label stands on"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """The other axes are those of the indices; a matrix multiplied with it keeps all rows."""
        rank = channels.rank(channels.ref(node, 0))
        axis = node.attributes.get_int("axis", -1) % (rank + 1)
        _pass_others(channels, node, set(), "", {a: a if a < axis else a + 1 for a in range(rank)})


@op_rule("GridSample")
class GridSample(OpRule):
    """y[n, c, ...] = x[n, c, ...] interpolated at the places that the grid names"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Space is read by its coordinates; channels pass."""
        space = set(range(2, channels.rank(channels.ref(node, 0))))
        _pass_others(channels, node, space, f"{node.name} samples along this axis")
        channels.freeze_all(channels.ref(node, 1), f"{node.name} reads coordinates from it")


@op_rule("MaxRoiPool", "RoiAlign")
class RegionPool(OpRule):
    """y[r, c, ...] = mean or max of x[image of r, c, ...] inside region r"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Images and space are read by number; channels pass."""
        x = channels.ref(node, 0)
        stays = {axis for axis in range(channels.rank(x)) if axis != 1}
        _pass_others(channels, node, stays, f"{node.name} picks regions along this axis")
        for index in range(1, len(node.inputs)):
            channels.freeze_all(channels.ref(node, index), f"{node.name} reads regions from it")


@op_rule("MaxUnpool")
class MaxUnpool(OpRule):
    """y = zeros, with x at the places where MaxPool found its maxima"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Places count through all channels: a MaxPool that loses the same ones counts them anew."""
        x, indices = channels.ref(node, 0), channels.ref(node, 1)
        reason = f"{node.name} puts maxima back at places of the whole tensor"
        for ref in (x, indices):
            for axis in (0, *range(2, channels.rank(ref))):
                channels.freeze_axis(ref, axis, reason)
        labels = channels.alone(x, 1)
        if channels.has(node, 2) or not _undoes_max_pool(node, channels, indices):
            for ref in (x, indices):
                channels.freeze_axis(ref, 1, reason)
        else:
            channels.meet(indices, 1, labels, reason)
        channels.put(node.outputs[0], (1,), labels)


def _undoes_max_pool(node: ir.Node, channels: Channels, indices: Ref) -> bool:
    """Return whether the places come straight from a MaxPool over a tensor as large as the result."""
    producer = indices.producer() if isinstance(indices, ir.Value) else None
    if producer is None or producer.op_type != "MaxPool":
        return False
    return channels.shape(channels.ref(producer, 0)) == channels.shape(node.outputs[0])


@op_rule("CenterCropPad")
class CenterCropPad(OpRule):
    """y = the middle of x along some axes, or x in the middle of zeros"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """An axis that is cropped or padded stays; the others pass."""
        x, y = channels.ref(node, 0), node.outputs[0]
        if channels.constant(node, 1) is None:
            stays = set(self._axes(node, channels.rank(x)))
        else:
            sizes = zip(channels.shape(x), channels.shape(y), strict=True)
            stays = {axis for axis, (before, after) in enumerate(sizes) if before != after}
        _pass_others(channels, node, stays, f"{node.name} crops or pads this axis")

    def fix(self, node: ir.Node, kept: Kept) -> None:
        """Target sizes of axes that were cut become the kept counts."""
        masks, sizes = kept.input(node, 0), kept.old_ints(node, 1)
        axes = self._axes(node, len(kept.shape(node.outputs[0])))
        if sizes is not None and any(axis in masks for axis in axes):
            new = [
                kept.count(node.outputs[0], axis) if axis in masks else size
                for axis, size in zip(axes, sizes, strict=True)
            ]
            kept.set_ints(node, 1, new)

    def _axes(self, node: ir.Node, rank: int) -> list[int]:
        return [axis % rank for axis in node.attributes.get_ints("axes", range(rank))]


@op_rule("DFT")
class DFT(OpRule):
    """y = the discrete Fourier transform of x along one axis; the last axis holds real and imaginary parts"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Frequencies need all positions of the axis; the others pass."""
        rank = channels.rank(channels.ref(node, 0))
        if channels.shapes.opset < 20:
            axes = {node.attributes.get_int("axis", 1) % rank}
        elif not channels.has(node, 2):
            axes = {rank - 2}
        else:
            given = channels.constant(node, 2)
            axes = set(range(rank)) if given is None else {int(given.item()) % rank}
        _pass_others(channels, node, {*axes, rank - 1}, f"{node.name} transforms along this axis")


_READS = {
    "AffineGrid": "makes coordinates from it",
    "Bernoulli": "draws a random number for each position",
    "Compress": "picks positions by their content",
    "Det": "computes a determinant from it",
    "ImageDecoder": "decodes an image from it",
    "Multinomial": "draws positions at random",
    "NegativeLogLikelihoodLoss": "picks the class of each sample",
    "NonMaxSuppression": "picks boxes by their scores",
    "NonZero": "lists the positions that are not zero",
    "RandomNormalLike": "draws a random number for each position",
    "RandomUniformLike": "draws a random number for each position",
    "RegexFullMatch": "reads text",
    "STFT": "transforms frames of it",
    "SoftmaxCrossEntropyLoss": "normalises over classes",
    "StringConcat": "reads text",
    "StringNormalizer": "reads text",
    "StringSplit": "reads text",
    "TfIdfVectorizer": "counts sequences in it",
    "Unique": "compares its positions with each other",
}


@op_rule(*_READS)
class Reading(OpRule):
    """y = something about all of x"""

    def link(self, node: ir.Node, channels: Channels) -> None:
        """Every input stays as it is, and no output has channels."""
        for index in range(len(node.inputs)):
            if channels.has(node, index):
                channels.freeze_all(channels.ref(node, index), f"{node.name} {_READS[node.op_type]}")
