"""One trial: what goes from a model, alone, and what was found without it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from onnxprune.types import IntArray, Mask


@dataclass(frozen=True, slots=True)
class Trial:
    """Something that is removed alone.

    Attributes:
        subject: name of the channel group, or of the tensor; empty for the model as it is.
        size: channels of the group, or weights of the tensor.
        removed: how many of them go.
        channels: int32 [removed], ascending, of a group; None for masks.
        mask: which weights of the tensor stay; None for channels.
    """

    subject: str
    size: int
    removed: int
    channels: IntArray | None = None
    mask: Mask | None = None

    def key(self, setting: str) -> str:
        """Return the sha256, in hexadecimal, of what goes and of the setting that it is measured in."""
        digest = hashlib.sha256(repr((setting, self.subject, self.size, self.removed)).encode())
        if self.channels is not None:
            digest.update(b"channels")
            digest.update(self.channels.astype("<i4").tobytes())
        if self.mask is not None:
            digest.update(repr(("mask", self.mask.shape)).encode())
            digest.update(self.mask.bits.tobytes())
        return digest.hexdigest()


#: The model as it is: what every other trial is compared with.
WHOLE = Trial("", 0, 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial found.

    Attributes:
        metric: name of the loss.
        loss: mean over all samples; None if the trial failed.
        top1: share of samples that are right; None without labels of classes.
        failure: why there is no loss, or None.
        cached: it was found by an earlier run.
    """

    metric: str
    loss: float | None
    top1: float | None = None
    failure: str | None = None
    cached: bool = False
