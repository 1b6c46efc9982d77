"""What is lost of a group's importance when its weakest channels go, such that losses of groups add up.

Scores that are losses do so as they are. Any other score says what a channel is worth beside the others of
its group, and no more: it grows with the size of weights and activations, which differ between layers for
other reasons. So a group keeps a share of its importance,

    s_g(n) = (sum of the scores of what stays) / (sum of all scores),

each of the r_g layers that read it passes on that share of what it gets, and what passes through layers one
after the other is weakened by each of them: the network keeps the product of all these shares. What is
minimised is a sum again,

    sum_g -r_g log s_g(n_g).

Without the logarithm, groups that are dear would be emptied for the sake of those that are cheap, since the
last channel of a group would be worth no more than any other; without r_g, so would the width of a residual
stream, which counts once in scores and saves in every layer that reads it. `docs/budgets.md` has figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnxprune.allocate.ranked import Ranked
from onnxprune.types import Curve, FloatArray, IntArray

#: The least share of a group's importance that is told from nothing.
_LEAST_SHARE = 1e-12


def predicted_losses(ranked: Sequence[Ranked], *, losses: bool) -> dict[str, Curve]:
    """Return what each group loses when so many of its weakest channels go, by name.

    Args:
        ranked: the groups that may lose channels.
        losses: scores are losses that add up.
    """
    return {
        group.name: Curve(group.name, group.size, np.arange(group.size + 1), _lost(group, losses))
        for group in ranked
    }


def importance_kept(ranked: Sequence[Ranked], removed: Mapping[str, IntArray], *, losses: bool) -> float:
    """Return the share of the importance that a choice keeps, in [0, 1].

    Of losses it is what of their sum over all channels is not lost. Of other scores it is the geometric mean
    of the shares that groups keep, over all layers that read a group that may lose channels.

    Args:
        ranked: the groups that may lose channels.
        removed: int32 channel numbers by group name, of the weakest ones of each group.
        losses: scores are losses that add up.
    """
    if not ranked:
        return 1.0
    values = {group.name: _worth(group) for group in ranked}
    totals = {name: float(worth.sum()) for name, worth in values.items()}
    gone = {name: float(values[name][removed[name]].sum()) if name in removed else 0.0 for name in values}
    if losses:
        return 1.0 - sum(gone.values()) / (sum(totals.values()) or 1.0)
    shares = [1.0 - gone[group.name] / (totals[group.name] or 1.0) for group in ranked]
    logs = np.log(np.maximum(shares, _LEAST_SHARE))
    return float(np.exp(np.average(logs, weights=[group.readers for group in ranked])))


def _lost(group: Ranked, losses: bool) -> FloatArray:
    """Return the loss by how many are gone: float64 [size + 1]."""
    worth = _worth(group)[group.order]
    gone = np.append(0.0, np.cumsum(worth))
    if losses:
        return gone
    shares = 1.0 - gone / (gone[-1] or 1.0)
    return np.asarray(-group.readers * np.log(np.maximum(shares, _LEAST_SHARE)))


def _worth(group: Ranked) -> FloatArray:
    """Return scores without infinities: what goes first is worth nothing, what goes last as much as any."""
    values = group.values
    strongest = values[np.isfinite(values)].max(initial=0.0)
    return np.clip(np.where(np.isneginf(values), 0.0, values), 0.0, strongest)
