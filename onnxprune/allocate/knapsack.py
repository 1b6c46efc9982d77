"""One option of every menu: the least loss whose costs stay under a limit (the multiple-choice knapsack).

    minimise  sum_g loss[g, o_g]   such that  sum_g cost[g, o_g] <= limit

A price for the cost (a Lagrange multiplier) gives a lower bound and, mostly, a choice that is close to it.
Menu by menu, partial choices are then extended; what is dominated (dearer and worse than another), or can't
beat the best choice known even at the lower bound of the menus to come, is dropped (Dyer, Riha and Walker
1995, "A hybrid dynamic programming/branch-and-bound algorithm for the multiple-choice knapsack problem").
What is left at the end is the optimum. Deterministic, and nothing but numpy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxprune.types import FloatArray

#: Doublings and halvings of the price; more than float64 can tell apart.
_PRICE_STEPS = 80

#: Partial choices that are kept. Only where more are left is the result not proved to be the best.
_MOST_PARTIAL = 20_000

#: Losses and costs that differ by less, relative to the largest, count as equal.
_ROUNDING = 1e-12


def choose_options(
    losses: Sequence[FloatArray], costs: Sequence[FloatArray], limit: float
) -> tuple[int, ...] | None:
    """Return the number of an option of each menu; None if even the cheapest ones exceed the limit.

    Of choices with the same loss, one of the cheapest is taken.

    Args:
        losses: float64 [options] of each menu, not negative.
        costs: float64 [options] of each menu.
        limit: of the sum of the costs.
    """
    if not losses:
        return () if limit >= 0 else None
    begins = [float(cost.min()) for cost in costs]
    room = limit - sum(begins)
    span = max(float(np.ptp(cost)) for cost in costs) or 1.0
    if room < -_ROUNDING * span * len(costs):
        return None
    room = max(room, 0.0) + _ROUNDING * span * len(costs)
    extra = [cost - begin for cost, begin in zip(costs, begins, strict=True)]
    if sum(float(cost[_best(loss, cost)]) for loss, cost in zip(losses, extra, strict=True)) <= room:
        return tuple(_best(loss, cost) for loss, cost in zip(losses, extra, strict=True))
    price, known = _priced(losses, extra, room)
    return _extended(losses, extra, room, price, known)


def _best(loss: FloatArray, cost: FloatArray) -> int:
    """Return the option with the least loss, the cheapest of several."""
    return int(np.lexsort((cost, loss))[0])


def _at_price(losses: Sequence[FloatArray], costs: Sequence[FloatArray], price: float) -> tuple[int, ...]:
    return tuple(int(np.argmin(loss + price * cost)) for loss, cost in zip(losses, costs, strict=True))


def _total(arrays: Sequence[FloatArray], places: Sequence[int]) -> float:
    return float(sum(array[place] for array, place in zip(arrays, places, strict=True)))


def _priced(
    losses: Sequence[FloatArray], costs: Sequence[FloatArray], room: float
) -> tuple[float, tuple[int, ...]]:
    """Return the lowest price at which the cost fits, about, and the choice there, with what still fits."""
    cheapest = tuple(int(np.lexsort((loss, cost))[0]) for loss, cost in zip(losses, costs, strict=True))
    low, high, best = 0.0, 1.0, cheapest
    scale = max(float(loss.max()) for loss in losses) / max(float(cost.max()) for cost in costs)
    high = scale or 1.0
    for _ in range(_PRICE_STEPS):
        if _total(costs, _at_price(losses, costs, high)) <= room:
            break
        low, high = high, high * 4
    for _ in range(_PRICE_STEPS):
        middle = (low + high) / 2
        places = _at_price(losses, costs, middle)
        if _total(costs, places) <= room:
            high, best = middle, places
        else:
            low = middle
    return high, _filled(losses, costs, room, best)


def _filled(
    losses: Sequence[FloatArray], costs: Sequence[FloatArray], room: float, places: tuple[int, ...]
) -> tuple[int, ...]:
    """Spend what is left: menu by menu, the option with the least loss that fits."""
    chosen = list(places)
    left = room - _total(costs, chosen)
    for number, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        fits = np.flatnonzero(cost - cost[chosen[number]] <= left)
        better = int(fits[np.argmin(loss[fits])])
        left -= float(cost[better] - cost[chosen[number]])
        chosen[number] = better
    return tuple(chosen)


def _extended(
    losses: Sequence[FloatArray],
    costs: Sequence[FloatArray],
    room: float,
    price: float,
    known: tuple[int, ...],
) -> tuple[int, ...]:
    """Return the best choice, given one that is known."""
    bounds = np.array([float((loss + price * cost).min()) for loss, cost in zip(losses, costs, strict=True)])
    to_come = np.append(np.cumsum(bounds[::-1])[::-1], 0.0) - price * room
    worth = _total(losses, known)
    tolerance = _ROUNDING * max(worth, 1e-300)
    spent, lost = np.zeros(1), np.zeros(1)
    steps: list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]] = []
    for number, (loss, cost) in enumerate(zip(losses, costs, strict=True)):
        all_spent, all_lost = (spent[:, None] + cost).ravel(), (lost[:, None] + loss).ravel()
        hope = all_lost + price * all_spent + to_come[number + 1]
        alive = np.flatnonzero((all_spent <= room) & (hope < worth - tolerance))
        if not alive.size:
            return known  # nothing can be better
        order = alive[np.lexsort((all_lost[alive], all_spent[alive]))]
        least = np.minimum.accumulate(all_lost[order])
        order = order[np.append(True, all_lost[order][1:] < least[:-1])]
        if order.size > _MOST_PARTIAL:
            order = order[np.sort(np.argpartition(hope[order], _MOST_PARTIAL)[:_MOST_PARTIAL])]
        spent, lost = all_spent[order], all_lost[order]
        steps.append((order // cost.size, order % cost.size))
    place = int(np.lexsort((spent, lost))[0])
    chosen = []
    for parents, options in reversed(steps):
        chosen.append(int(options[place]))
        place = int(parents[place])
    return tuple(reversed(chosen))
