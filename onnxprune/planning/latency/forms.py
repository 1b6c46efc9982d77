"""How the sizes inside a part follow from the kept counts of channel groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxprune.analyze import Analysis
from onnxprune.ops.channels import Ref
from onnxprune.ops.kept import Kept
from onnxprune.parts import Part
from onnxprune.types import ChannelGroup, FloatArray


class Sizes:
    """The sizes of all parts of an analysed model.

    Args:
        analysis: of the model.
        groups: those that may lose channels, by name.
    """

    def __init__(self, analysis: Analysis, groups: Mapping[str, ChannelGroup]) -> None:
        self._channels = analysis.channels
        self._half = {
            name: Kept(
                analysis.channels,
                analysis.removed_labels({name: np.arange((group.size + 1) // 2, dtype=np.int32)}),
            )
            for name, group in groups.items()
        }
        self.groups = groups

    def forms_of(self, part: Part, names: Sequence[str]) -> tuple[FloatArray, FloatArray]:
        """Return the distinct sizes that shrink as linear forms of kept counts.

        Args:
            part: the part.
            names: of its groups.

        Returns:
            float64 [sizes, groups] and float64 [sizes]: a size is ``forms @ counts + offsets``.
        """
        found: dict[tuple[float, ...], tuple[FloatArray, float]] = {}
        for ref in self._refs(part):
            shape = self._channels.shape(ref)
            masks = {name: self._half[name].masks(ref) for name in names}
            for axis in {axis for of_group in masks.values() for axis in of_group}:
                lost = np.array([int((~masks[n][axis]).sum()) if axis in masks[n] else 0 for n in names])
                sizes = np.array([self.groups[name].size for name in names])
                slopes = lost / ((sizes + 1) // 2)
                offset = max(0.0, shape[axis] - float(slopes @ sizes))
                key = tuple(np.round([*slopes, offset], 6) / shape[axis])
                found.setdefault(tuple(np.round(key, 9)), (slopes, offset))
        return np.array([slopes for slopes, _ in found.values()]), np.array([o for _, o in found.values()])

    def _refs(self, part: Part) -> Iterator[Ref]:
        """Yield what carries the labels of the values of a part."""
        yield from part.inputs
        for node in part.nodes:
            for index, value in enumerate(node.inputs):
                if value is not None and value.is_initializer() and self._known(value):
                    yield self._channels.ref(node, index)
            yield from (output for output in node.outputs if self._known(output))

    def _known(self, value: ir.Value) -> bool:
        return self._channels.shapes.shape(value) is not None
