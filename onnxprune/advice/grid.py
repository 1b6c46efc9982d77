"""Channel counts that kernels handle badly, in the model as it is: 63 channels can take longer than 64."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.analyze import Analysis
from onnxprune.types import ChannelGroup

#: Of convolutions, by provider; the CPU's blocked layouts take whole fours, tensor cores whole eights.
_GRIDS = {"cpu": 4, "cuda": 8, "tensorrt": 8, "tensorrt-rtx": 8}

#: Fewer channels than this have kernels of their own.
_LEAST = 16


def grid_of(provider: str) -> int:
    """Return what channel counts of convolutions should be multiples of; 1 where nothing is known."""
    return _GRIDS.get(provider, 1)


def off_grid(analysis: Analysis, grid: int) -> dict[str, int]:
    """Return the sizes of the groups off the grid that may lose channels, by name."""
    found = (group for group in _of_convolutions(analysis) if group.frozen is None)
    return {group.name: group.size for group in found if _is_off(group.size, grid)}


def stuck_off_grid(analysis: Analysis, grid: int) -> Sequence[tuple[str, int, str]]:
    """Return name, size and reason of the groups off the grid that must stay so."""
    return [
        (group.name, group.size, group.frozen)
        for group in _of_convolutions(analysis)
        if group.frozen is not None and _is_off(group.size, grid)
    ]


def _is_off(size: int, grid: int) -> bool:
    return size >= _LEAST and size % grid != 0


def _of_convolutions(analysis: Analysis) -> list[ChannelGroup]:
    """Return the groups that a convolution sums over or makes."""
    convolutions = {str(node.name) for node in analysis.model.graph if "Conv" in node.op_type}
    return [
        group
        for group in analysis.groups
        if group.kind == "channels" and any(member.consumer in convolutions for member in group.members)
    ]
