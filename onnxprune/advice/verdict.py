"""What was measured -> one or two sentences: what to do, or why to leave a model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.advice.actions import Action
from onnxprune.advice.layers import FOLDED, LAYOUT, OVERHEAD, SHRINKS, STAYS, Layer

#: From this share of the time on, one thing decides.
_MOST = 0.5

#: Below this share of the time left, what folding constants does is told.
_MUCH = 0.9

#: A model this quick needs nothing.
_QUICK_MS = 0.1


@dataclass(frozen=True, slots=True)
class Where:
    """Where the time goes.

    Attributes:
        wall_ms: of one run that nobody disturbs.
        parts: share of the wall time by part of `onnxprune.advice.layers`, the largest first.
        overhead: share of it that is spent calling kernels rather than in their work: what lies between the
            kernels, and the kernels that have next to nothing to do.
        moving: share of it in kernels that moving data limits.
        median_kernel_us: microseconds of the median kernel.
        kernels: how many there are.
        bound: the least share of the time that is left with as few channels as may be.
    """

    wall_ms: float
    parts: Mapping[str, float]
    overhead: float
    moving: float
    median_kernel_us: float
    kernels: int
    bound: float


def where(layers: Sequence[Layer], wall_ms: float, folded_ms: float, bound: float) -> Where:
    """Add up the time of layers; what belongs to none is the runtime's.

    Args:
        layers: of the model once what is constant is folded.
        wall_ms: of the model as it is.
        folded_ms: of the model that the layers are of.
        bound: the least share of ``wall_ms`` that is left with as few channels as may be.
    """
    total = sum(layer.microseconds for layer in layers)
    folded = max(1e3 * folded_ms, total, 1e-9)
    wall = max(1e3 * wall_ms, folded)
    shares: dict[str, float] = {OVERHEAD: (folded - total) / wall}
    if wall > folded:
        shares[FOLDED] = (wall - folded) / wall
    for layer in layers:
        shares[layer.part] = shares.get(layer.part, 0.0) + layer.microseconds / wall
    limited = {
        limit: sum(layer.microseconds for layer in layers if layer.limit == limit) / wall
        for limit in ("overhead", "memory")
    }
    return Where(
        wall_ms=wall_ms,
        parts=dict(sorted(shares.items(), key=lambda entry: -entry[1])),
        overhead=shares[OVERHEAD] + limited["overhead"],
        moving=limited["memory"],
        median_kernel_us=float(np.median([layer.microseconds for layer in layers])) if layers else 0.0,
        kernels=len(layers),
        bound=bound,
    )


def verdict_of(
    actions: Sequence[Action], found: Where | None, frozen: Sequence[str], noise: float = 0.0
) -> str:
    """Return the verdict.

    Args:
        actions: as `onnxprune.advice.actions.actions_of` orders them.
        found: where the time goes; None where it was not measured.
        frozen: why nothing can shrink, where nothing can.
        noise: how far the original's latency seems to be from itself.
    """
    return _verdict(actions, found, frozen) + (_BUSY.format(noise) if noise > _NOISY else "")


#: What is said where the original differs from itself by more than this.
_BUSY = " The machine was busy (the original differs from itself by {:.0%}): run it again when it is quiet."
_NOISY = 0.1


def _verdict(actions: Sequence[Action], found: Where | None, frozen: Sequence[str]) -> str:
    worth = [action for action in actions if action.worth]
    if not worth:
        return f"Leave it alone: {_why_not(actions, found, frozen)}."
    first, *others = worth
    text = f"{_start(worth, found)}: {_gain(first)}"
    other = next((action for action in others if _kind(action) != _kind(first)), None)
    if other is not None:
        text += f"; {_gain(other)}"
    return f"{text}. {_folding(actions)}{_context(found)}"


def _folding(actions: Sequence[Action]) -> str:
    """Say how much of a gain is none of pruning's, where that is much."""
    folded = next((action for action in actions if action.title.startswith("fold")), None)
    if folded is None or folded.latency_ratio is None or folded.latency_ratio.high > _MUCH:
        return ""
    return (
        f"Folding what is constant, which every pruned model has, alone leaves "
        f"{folded.latency_ratio.value:.2f}. "
    )


def _start(worth: Sequence[Action], found: Where | None) -> str:
    if found is not None and found.wall_ms < _QUICK_MS:
        took = _milliseconds(found.wall_ms)
        return f"Leave it alone, which is already fast ({took}), unless microseconds count; then"
    if all(action.risk == "very high" for action in worth):
        return "Only at a high risk"
    return "Worth it" if worth[0].basis == "measured" else "Probably worth it"


def _gain(action: Action) -> str:
    ratio = action.latency_ratio
    if ratio is None or action.basis != "measured":
        left = f"about {action.bound or 1:.2f} of the time is left (by Amdahl's law; not measured clearly)"
        return f"{action.title}, and {left}"
    left = f"{ratio.value:.2f} of the time is left ({ratio.low:.2f} to {ratio.high:.2f}, measured here)"
    return f"{action.title}, and {left}"


def _kind(action: Action) -> str:
    return "int8" if "INT8" in action.title else "prune"


def _context(found: Where | None) -> str:
    if found is None:
        return ""
    if found.overhead >= _MOST:
        return f"{_overhead(found)}: fewer layers save calls, narrower ones little; a larger batch uses them."
    shrinks = found.parts.get(SHRINKS, 0.0)
    return (
        f"{shrinks:.0%} of {_milliseconds(found.wall_ms)} is in layers that channels shrink; with nine "
        f"tenths of all channels gone, about {found.bound:.2f} of the time would be left."
    )


def _why_not(actions: Sequence[Action], found: Where | None, frozen: Sequence[str]) -> str:
    """Say what keeps the model from getting faster, the surest reason first."""
    tried = [action for action in actions if not action.title.startswith(("fold", "set"))]
    timed = [action for action in tried if action.latency_ratio is not None]
    reasons = []
    if found is not None and found.overhead >= _MOST:
        reasons.append(f"{_overhead(found)}; smaller tensors don't change that, a larger batch would")
    elif found is not None and found.parts.get(STAYS, 0.0) >= _MOST:
        reasons.append(
            f"{found.parts[STAYS]:.0%} of the time is in layers whose channels must stay (reasons below)"
        )
    elif found is not None and found.parts.get(SHRINKS, 0.0) < _MOST:
        others = {
            part: share
            for part, share in found.parts.items()
            if part not in (SHRINKS, OVERHEAD, LAYOUT, FOLDED) and share >= 0.1
        }
        if others:
            listed = ", ".join(f"{share:.0%} {part}" for part, share in others.items())
            reasons.append(f"channels hardly touch what takes the time ({listed})")
    if frozen:
        reasons.append(f"nothing can be removed ({frozen[0]})")
    if timed and all(action.latency_ratio.value > 0.95 for action in timed if action.latency_ratio):
        reasons.append(f"none of {len(timed)} candidates saves as much as 5 % of the time")
    if tried and not timed:
        reasons.append("no candidate could be timed (reasons below)")
    return "; ".join(reasons) or "what makes it faster costs too much (see below)"


def _overhead(found: Where) -> str:
    return (
        f"{found.overhead:.0%} of its {_milliseconds(found.wall_ms)} is the runtime calling {found.kernels} "
        f"kernels (half of them take {found.median_kernel_us:.0f} us or less), not computation"
    )


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value >= 1 else f"{1e3 * value:.0f} us"
