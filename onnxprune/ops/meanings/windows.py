"""Where windows of convolutions and poolings stand: strides, dilations and padding of any rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxprune.ops.meanings.base import Static


@dataclass(frozen=True, slots=True)
class Windows:
    """Attributes that convolutions and poolings share.

    Attributes:
        kernel: sizes of the window.
        strides, dilations: one for each axis of space.
        pads: all beginnings, then all ends.
        auto: "NOTSET" (``pads`` holds), "VALID" (none), "SAME_UPPER" or "SAME_LOWER".
        ceil: the last window may begin inside and end outside.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto: str
    ceil: bool = False

    @classmethod
    def of(cls, node: Static, kernel: Sequence[int]) -> Windows:
        """Read the attributes of a node whose window is known."""
        rank = len(kernel)
        auto = node.text("auto_pad", "NOTSET") or "NOTSET"
        pads = node.ints("pads", [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
        return cls(
            tuple(kernel),
            tuple(node.ints("strides", [1] * rank) or ()),
            tuple(node.ints("dilations", [1] * rank) or ()),
            tuple(pads or ()),
            auto,
            bool(node.int("ceil_mode")),
        )

    @property
    def rank(self) -> int:
        """Number of axes of space."""
        return len(self.kernel)

    @property
    def extents(self) -> list[int]:
        """Sizes that the dilated window covers."""
        return [(size - 1) * dilation + 1 for size, dilation in zip(self.kernel, self.dilations, strict=True)]

    def padding(self, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the padding in front and behind for an input of these sizes (without ``ceil``)."""
        if not self.auto.startswith("SAME"):
            return list(self.pads[: self.rank]), list(self.pads[self.rank :])
        begins, ends = [], []
        for size, stride, extent in zip(sizes, self.strides, self.extents, strict=True):
            total = max(0, (math.ceil(size / stride) - 1) * stride + extent - size)
            small, large = total // 2, total - total // 2
            begins.append(small if self.auto == "SAME_UPPER" else large)
            ends.append(large if self.auto == "SAME_UPPER" else small)
        return begins, ends

    def overhang(self, sizes: Sequence[int], begins: Sequence[int], ends: Sequence[int]) -> list[int]:
        """Return how far the last windows reach behind the padding where ``ceil`` adds some."""
        if not self.ceil or self.auto.startswith("SAME"):
            return [0] * self.rank
        more = []
        for size, stride, extent, begin, end in zip(
            sizes, self.strides, self.extents, begins, ends, strict=True
        ):
            rest = size + begin + end - extent
            count = math.ceil(rest / stride) + 1
            if (count - 1) * stride >= size + begin:  # it would begin in the padding behind
                count -= 1
            more.append(max(0, (count - 1) * stride - rest))
        return more


def padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    """Pad the last axes of x with a number."""
    if not any(begins) and not any(ends):
        return x
    amounts = [amount for pair in zip(reversed(begins), reversed(ends), strict=True) for amount in pair]
    return F.pad(x, amounts, value=value)
