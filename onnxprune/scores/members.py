"""From figures of single weights to figures of channels: sums over all weights that go with a channel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.types import ChannelGroup, FloatArray, IntArray

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Members:
    """Which positions of which weights belong to the channels of some groups.

    Attributes:
        sizes: channels by group name.
        places: by tensor name: group, axis, and int32 [dim] the channel of each position, -1 for none.
    """

    sizes: Mapping[str, int]
    places: Mapping[str, list[tuple[str, int, IntArray]]]

    @classmethod
    def of(cls, groups: Iterable[ChannelGroup], tensors: Collection[str] | None = None) -> Members:
        """Collect the members of groups.

        Every axis counts once, however many nodes read the tensor along it: its figures are of all its uses.

        Args:
            groups: from an analysis.
            tensors: names of those that have figures; None for all.
        """
        sizes: dict[str, int] = {}
        places: dict[str, list[tuple[str, int, IntArray]]] = {}
        seen = set()
        for group in groups:
            sizes[group.name] = group.size
            for member in group.members:
                key = (group.name, member.tensor, member.axis, member.channel_at.tobytes())
                if key not in seen and (tensors is None or member.tensor in tensors):
                    seen.add(key)
                    place = (group.name, member.axis, member.channel_at)
                    places.setdefault(member.tensor, []).append(place)
        return cls(sizes, places)

    @property
    def tensors(self) -> Collection[str]:
        """Names of the weights."""
        return self.places.keys()

    def zeros(self) -> dict[str, FloatArray]:
        """Return float64 zeros [channel] by group name."""
        return {name: np.zeros(size) for name, size in self.sizes.items()}

    def add(self, totals: Mapping[str, FloatArray], tensor: str, figures: Array) -> None:
        """Add figures of single weights to those of the channels that they belong to.

        Args:
            totals: float64 [channel] by group name; changed.
            tensor: name of the weight.
            figures: in the shape of the tensor.
        """
        sums: dict[int, FloatArray] = {}
        for group, axis, channel_at in self.places.get(tensor, ()):
            if axis not in sums:
                others = tuple(other for other in range(figures.ndim) if other != axis)
                sums[axis] = figures.sum(axis=others, dtype=np.float64)
            mine = channel_at >= 0
            totals[group] += np.bincount(channel_at[mine], sums[axis][mine], minlength=self.sizes[group])


def why_no_floats(model: ir.Model, group: ChannelGroup) -> str | None:
    """Return why the weights of a group can't be compared as real numbers, None if they can."""
    initializers = model.graph.initializers
    for name in dict.fromkeys(member.tensor for member in group.members):
        tensor = initializers[name].const_value
        if tensor is not None and not tensor.dtype.is_floating_point() and len(tensor.shape) > 1:
            return f"{name} holds {tensor.dtype.name.lower()} numbers: prune before quantizing"
    return None if group.members else "no weight goes with its channels"


def channel_figures(groups: Iterable[ChannelGroup], figures: Mapping[str, Array]) -> dict[str, FloatArray]:
    """Return the sum over all members of each channel, heads among them, of figures of single weights.

    Args:
        groups: from an analysis.
        figures: by tensor name, in the shape of the tensor; tensors without figures count nothing.

    Returns:
        float64 [channel] by group name, of the groups that have any figures.
    """
    members = Members.of(groups, figures)
    totals = members.zeros()
    for name in members.tensors:
        members.add(totals, name, figures[name])
    known = {group for places in members.places.values() for group, _, _ in places}
    return {name: total for name, total in totals.items() if name in known}
