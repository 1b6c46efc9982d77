"""Measured curves -> how much goes from each group: the least predicted loss under an amount or a target.

The prediction adds up what each group costs alone. Choosing one amount for each group under a limit is a
multiple-choice knapsack, which is solved exactly. Where the costs of groups depend on each other (the
multiply-accumulates of a layer are a product of kept inputs and outputs), they are taken as they are around
the current choice, the knapsack is solved, and the exact cost decides; again until the prediction does not
fall any more. At the end single steps are exchanged between groups, at their exact costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.allocate.knapsack import choose_options
from onnxprune.types import Curve, FloatArray

Counts = npt.NDArray[np.int64]

#: Where each group stands: the number of an option of each menu.
Places = tuple[int, ...]

#: From the number of removed channels by group name to the share of a metric that is left.
CostOf = Callable[[Mapping[str, int]], float]

#: Times that costs are taken anew around a choice, and that the limit is corrected in between.
_ROUNDS = 8
_CORRECTIONS = 6

#: Steps that one group takes at most in an exchange at the end.
_MOST_STEPS = 3

#: Exact costs that the exchange of single steps may ask for at the end.
_MOST_COSTS = 800


@dataclass(frozen=True, slots=True)
class Menu:
    """What one group offers.

    Attributes:
        name: of the group.
        counts: int64 [options], ascending: how many channels or weights go; the first is 0.
        losses: float64 [options], ascending: the predicted loss of each, 0 for the first.
    """

    name: str
    counts: Counts
    losses: FloatArray


def make_menu(curve: Curve, counts: Sequence[int]) -> Menu:
    """Read a curve at the counts that are allowed.

    The curve is made monotone first (its running maximum: a loss that falls while more goes is noise, or luck
    with the samples), then interpolated linearly. Nothing is offered beyond the last count that was measured.

    Args:
        curve: measured.
        counts: how many may go, in any order; 0 is always among them.
    """
    rising = np.maximum.accumulate(np.maximum(curve.increase, 0.0))
    allowed = np.array(sorted({0, *counts}), dtype=np.int64)
    allowed = allowed[allowed <= curve.removed[-1]]
    return Menu(curve.name, allowed, np.interp(allowed, curve.removed, rising))


def meet_amount(menus: Sequence[Menu], wanted: float) -> dict[str, int]:
    """Return how much goes from each group such that ``wanted`` goes in all, at the least predicted loss.

    Where the menus do not offer so much, all that they offer goes.
    """
    costs = [-menu.counts.astype(np.float64) for menu in menus]
    reachable = sum(float(menu.counts[-1]) for menu in menus)
    places = choose_options([menu.losses for menu in menus], costs, -min(wanted, reachable))
    return _counts(menus, places or tuple(len(menu.counts) - 1 for menu in menus))


def meet_target(
    menus: Sequence[Menu], keep: float, cost: CostOf, starts: Sequence[Mapping[str, int]] = ()
) -> dict[str, int] | None:
    """Return how much goes from each group such that at most ``keep`` is left, at the least predicted loss.

    Args:
        menus: one for each group.
        keep: share of the metric that may stay.
        cost: the exact share that is left once so many channels are gone; asked for often.
        starts: choices that are known to meet the target; the result is never predicted to be worse.

    Returns:
        Removed counts by group name, or None where all that the menus offer is not enough.
    """
    search = _Search(menus, keep, cost)
    everything = tuple(len(menu.counts) - 1 for menu in menus)
    if search.cost_of(everything) > keep:
        return None
    nothing = (0,) * len(menus)
    choices = [everything, *(search.places_of(start) for start in starts)]
    choices += [search.around(places) for places in (nothing, everything)]
    ordered = sorted({places for places in choices if places is not None}, key=search.loss_of)
    best = search.improved(ordered[0])
    for places in ordered[
        1:
    ]:  # where costs are many or dear, the most promising one is all there is time for
        if search.has_time:
            best = min(best, search.improved(places), key=search.loss_of)
    return _counts(menus, best)


def _counts(menus: Sequence[Menu], places: Places) -> dict[str, int]:
    return {menu.name: int(menu.counts[place]) for menu, place in zip(menus, places, strict=True)}


class _Search:
    """Choices under a limit of a cost that is not a sum over groups."""

    def __init__(self, menus: Sequence[Menu], keep: float, cost: CostOf) -> None:
        self._menus = menus
        self._keep = keep
        self._cost = cost
        self._known: dict[Places, float] = {}

    def cost_of(self, places: Places) -> float:
        if places not in self._known:
            self._known[places] = self._cost(_counts(self._menus, places))
        return self._known[places]

    @property
    def has_time(self) -> bool:
        return len(self._known) < _MOST_COSTS // 2

    def loss_of(self, places: Places) -> float:
        return float(sum(menu.losses[place] for menu, place in zip(self._menus, places, strict=True)))

    def places_of(self, counts: Mapping[str, int]) -> Places | None:
        """Return the options that counts stand for; None if one is not on its menu, or they cost too much."""
        places = []
        for menu in self._menus:
            place = int(np.searchsorted(menu.counts, counts.get(menu.name, 0)))
            if place == len(menu.counts) or menu.counts[place] != counts.get(menu.name, 0):
                return None
            places.append(place)
        return tuple(places) if self.cost_of(tuple(places)) <= self._keep else None

    def improved(self, places: Places) -> Places:
        """Return a choice within the limit that loses no more than the one given, which is within it."""
        best = places
        for _ in range(_ROUNDS):
            found = self.around(best)
            if found is None or self.loss_of(found) >= self.loss_of(best):
                break
            best = found
        return self._exchanged(self._given_back(best))

    def around(self, places: Places) -> Places | None:
        """Solve with the costs of single groups around a choice; correct the limit by the exact cost."""
        costs = [self._costs_along(places, number) for number in range(len(places))]
        limit, best = self._keep, None
        for _ in range(_CORRECTIONS):
            shift = self.cost_of(places) - sum(float(c[p]) for c, p in zip(costs, places, strict=True))
            found = choose_options([menu.losses for menu in self._menus], costs, limit - shift)
            if found is None:
                break
            over = self.cost_of(found) - self._keep
            if over <= 0:
                found = self._given_back(found)
                if best is None or self.loss_of(found) < self.loss_of(best):
                    best = found
            if abs(over) < 1e-4:
                break
            limit -= over  # what the costs around the choice did not foresee
        return best

    def _costs_along(self, places: Places, number: int) -> FloatArray:
        """Return the cost of every option of one group while the others stay where they are.

        It is a polynomial of the second degree in the count, so three exact costs give all: a group's
        channels are inputs of some layers, outputs of others, and both of those inside a residual stream.
        """
        counts = self._menus[number].counts
        options = sorted({0, places[number], len(counts) // 2, len(counts) - 1})[-4:]
        exact = [self.cost_of((*places[:number], option, *places[number + 1 :])) for option in options]
        if len(options) == len(counts):
            return np.array(exact)
        scaled = counts / max(1, counts[-1])
        degree = min(2, len(options) - 1)
        curve = np.polynomial.Polynomial.fit(scaled[options], exact, degree)
        return np.asarray(curve(scaled))

    def _given_back(self, places: Places, held: int = -1) -> Places:
        """Let stay what still fits, the largest loss first, until no step of any group but one does."""
        open_ = [number for number in range(len(places)) if places[number] > 0 and number != held]
        while open_:
            number = max(open_, key=lambda n: (self._saved(places, n), -n))
            trial = (*places[:number], places[number] - 1, *places[number + 1 :])
            if self.cost_of(trial) <= self._keep:
                places = trial
            if places is not trial or places[number] == 0:
                open_.remove(number)  # costs only grow from here on, so what did not fit never will
        return places

    def _saved(self, places: Places, number: int) -> float:
        losses = self._menus[number].losses
        return float(losses[places[number]] - losses[places[number] - 1])

    def _exchanged(self, places: Places) -> Places:
        """Take a few steps more from one group and give back to the others, as long as that pays."""
        pays = True
        while pays:
            pays = False
            for number, menu in enumerate(self._menus):
                for steps in range(1, _MOST_STEPS + 1):
                    if places[number] + steps >= len(menu.counts) or len(self._known) >= _MOST_COSTS:
                        break
                    more = (*places[:number], places[number] + steps, *places[number + 1 :])
                    found = self._given_back(self._given_back(more, number))
                    if self.loss_of(found) < self.loss_of(places) * (1 - 1e-12):
                        places, pays = found, True
        return places
