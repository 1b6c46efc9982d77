"""One option of every menu: the least loss whose costs stay under several limits at once.

    minimise  sum_g loss[g, o_g]   such that  sum_g cost[m, g, o_g] <= limit[m]   for every m

With one limit this is `choose_options`, which proves its result. With several, the linear relaxation gives a
price for each cost (the dual variables), a lower bound, and the reduced costs by which partial choices are
ordered: of these, the most promising ones are extended menu by menu. What can't beat the best choice that is
known, at the lower bound of the menus to come, is dropped, so a result that is not dropped to fit the width
of the search is the optimum (Pisinger 1995, "A minimal algorithm for the multiple-choice knapsack problem",
section 3, for one limit).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy

from onnxprune.allocate.knapsack import choose_options
from onnxprune.types import BoolArray, FloatArray

#: Partial choices that are kept in one search after the other: what one finds, the next need not look beyond.
_WIDTHS = (40, 400, 4000)

#: What a unit of room that is left over, or lacking, counts in the order of partial choices: a part of its
#: price. On 32 drawn instances of 30 and 60 menus, half of it came closest to the bound (0.3 % on average;
#: without it 0.5 %, at the full price 0.4 %).
_ROOM_SHARE = 0.5

#: Costs that differ by less, relative to the largest, count as equal.
_ROUNDING = 1e-12


def choose_within(
    losses: Sequence[FloatArray], costs: Sequence[FloatArray], limits: FloatArray
) -> tuple[int, ...] | None:
    """Return the number of an option of each menu; None if no choice keeps to the limits, or none was found.

    Args:
        losses: float64 [options] of each menu, not negative.
        costs: float64 [limits, options] of each menu.
        limits: float64 [limits], of the sums of the costs.
    """
    if len(limits) == 1:
        return choose_options(losses, [cost[0] for cost in costs], float(limits[0]))
    if not losses:
        return () if (limits >= 0).all() else None
    begins = [cost.min(axis=1, keepdims=True) for cost in costs]
    span = np.maximum(np.max([np.ptp(cost, axis=1) for cost in costs], axis=0), 1e-300)
    room = (limits - np.sum(begins, axis=0)[:, 0]) / span + _ROUNDING * len(costs)
    if (room < 0).any():
        return None
    extra = [(cost - begin) / span[:, None] for cost, begin in zip(costs, begins, strict=True)]
    open_ = [_not_dominated(loss, cost) for loss, cost in zip(losses, extra, strict=True)]
    # large steps first: small ones then fill what is left
    order = np.argsort([-float(cost.max()) for cost in extra], kind="stable").tolist()
    losses = [losses[number][open_[number]] for number in order]
    extra = [extra[number][:, open_[number]] for number in order]
    relaxed = _relaxed(losses, extra, room)
    if relaxed is None:
        return None
    best = None
    for width in _WIDTHS:
        found = _extended(losses, extra, room, relaxed, width, best)
        best = found if found is not None else best
    if best is None:
        return None
    found_at = dict(zip(order, best, strict=True))
    return tuple(int(places[found_at[number]]) for number, places in enumerate(open_))


def lower_bound(
    losses: Sequence[FloatArray], costs: Sequence[FloatArray], limits: FloatArray
) -> float | None:
    """Return what no choice within the limits loses less than, None if there is none; arguments as above."""
    prices = _relaxed(losses, costs, limits)
    if prices is None:
        return None
    least = (float((loss + prices @ cost).min()) for loss, cost in zip(losses, costs, strict=True))
    return float(sum(least) - prices @ limits)


def _not_dominated(loss: FloatArray, cost: FloatArray) -> npt.NDArray[np.intp]:
    """Return the options that no other one is as good as in everything; the first of equal ones."""
    order = np.lexsort((np.arange(len(loss)), cost.sum(axis=0), loss))
    kept: list[int] = []
    for option in order.tolist():
        if not (cost[:, kept] <= cost[:, [option]]).all(axis=0).any():
            kept.append(option)
    return np.array(sorted(kept), dtype=np.intp)


def _relaxed(
    losses: Sequence[FloatArray], costs: Sequence[FloatArray], room: FloatArray
) -> FloatArray | None:
    """Return the prices of the costs in the linear relaxation, float64 [limits]; None if that has none."""
    sizes = [len(loss) for loss in losses]
    menus = np.repeat(np.arange(len(sizes)), sizes)
    one_each = scipy.sparse.csr_array((np.ones(len(menus)), (menus, np.arange(len(menus)))))
    scale = max(float(loss.max()) for loss in losses) or 1.0
    result = scipy.optimize.linprog(
        np.concatenate(losses) / scale,
        A_ub=np.concatenate(costs, axis=1),
        b_ub=room,
        A_eq=one_each,
        b_eq=np.ones(len(sizes)),
        bounds=(0, None),
        method="highs-ds",
    )
    if result.status != 0:
        return None
    return np.maximum(-np.asarray(result.ineqlin.marginals, dtype=np.float64), 0.0) * scale


def _extended(
    losses: Sequence[FloatArray],
    costs: Sequence[FloatArray],
    room: FloatArray,
    prices: FloatArray,
    width: int,
    known: tuple[int, ...] | None,
) -> tuple[int, ...] | None:
    """Return a choice that is better than the one that is known, None if none was found."""
    reduced = [loss + prices @ cost for loss, cost in zip(losses, costs, strict=True)]
    bounds = np.array([float(each.min()) for each in reduced])
    bound = float(bounds.sum() - prices @ room)
    worth = np.inf if known is None else float(sum(a[at] for a, at in zip(losses, known, strict=True)))
    worth -= _ROUNDING * max(abs(worth), 1e-300) if known is not None else 0.0
    usual = np.array([cost[:, int(each.argmin())] for each, cost in zip(reduced, costs, strict=True)])
    to_come = np.cumsum(usual[::-1], axis=0)[::-1]  # what the menus to come spend at these prices
    spent, over = np.zeros((len(room), 1)), np.zeros(1)  # over: how far reduced costs exceed the bound
    steps: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    for number, (each, cost, least) in enumerate(zip(reduced, costs, bounds, strict=True)):
        able: BoolArray = np.asarray(bound + each - least < worth)
        options = np.flatnonzero(able)
        all_spent = (spent[:, :, None] + cost[:, None, options]).reshape(len(room), -1)
        all_over = (over[:, None] + (each[options] - least)).ravel()
        alive = np.flatnonzero((all_spent <= room[:, None]).all(axis=0) & (bound + all_over < worth))
        if not alive.size:
            return None
        if alive.size > width:
            ahead = room - to_come[number] + usual[number]
            misfit = prices @ np.abs(ahead[:, None] - all_spent[:, alive])
            rank = all_over[alive] + _ROOM_SHARE * misfit
            alive = alive[np.sort(np.argpartition(rank, width)[:width])]
        spent, over = all_spent[:, alive], all_over[alive]
        steps.append((alive // options.size, options[alive % options.size]))
    lost = over - prices @ spent
    place = int(np.lexsort((spent.sum(axis=0), lost))[0])
    chosen = []
    for parents, taken in reversed(steps):
        chosen.append(int(taken[place]))
        place = int(parents[place])
    return tuple(reversed(chosen))
