"""How much goes from each group: the least predicted loss within limits on costs that are no plain sums.

The prediction adds up what each group loses alone. Choosing one amount for each group under limits is a
multiple-choice knapsack. Where the costs of groups depend on each other (the multiply-accumulates of a layer
are a product of kept inputs and outputs), they are taken as they are around the current choice, the knapsack
is solved, and the exact costs decide; again until the prediction does not fall any more. At the end single
groups are moved, at exact costs, until no group can keep more of its channels where it is: so no count is
chosen that costs as much as a larger one, whatever steps the costs go in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxprune.allocate.knapsack_several import choose_within
from onnxprune.allocate.menus import Counts, Menu, Places, counts_at, loss_at
from onnxprune.types import BoolArray, FloatArray

#: From the number of removed channels by group name to the share of a metric that is left.
CostOf = Callable[[Mapping[str, int]], float]

#: The same for several counts of one group, by its name, while the others stay: float64 [counts].
CostsAlong = Callable[[Mapping[str, int], str, Counts], FloatArray]

#: Times that costs are taken anew around a choice, and that the limits are corrected in between.
_ROUNDS = 8
_CORRECTIONS = 6

#: Steps that one group takes at most in an exchange at the end.
_MOST_STEPS = 3

#: Exchanges that are tried at exact costs, and what they may exceed a limit by before.
_MOST_TRIALS = 40
_SLACK = 1e-4

#: Exact costs that the search of the best choice may ask for before it is content, and before it ends.
_ENOUGH_COSTS, _MOST_COSTS = 2000, 6000

#: What a cost may exceed its limit by where it follows from a polynomial; the exact cost decides afterwards.
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class CountLimit:
    """A limit on what is left after so many channels of each group are gone.

    Attributes:
        keep: the share that may stay.
        left: the exact share that is left.
        along: the same along one group; None for a polynomial through a few exact shares.
    """

    keep: float
    left: CostOf
    along: CostsAlong | None = None


def keep_within(
    menus: Sequence[Menu], limits: Sequence[CountLimit], starts: Sequence[Mapping[str, int]] = ()
) -> dict[str, int] | None:
    """Return how much goes from each group such that all limits are kept, at the least predicted loss.

    Args:
        menus: one for each group.
        limits: at least one; what is left of each is asked for often.
        starts: choices to begin with; the result is never predicted to be worse than those that fit.

    Returns:
        Removed counts by group name, or None where nothing that the menus offer is enough.
    """
    search = _Search(menus, limits)
    nothing = (0,) * len(menus)
    if search.fits(nothing):
        return counts_at(menus, nothing)
    everything = search.cheapest(tuple(len(menu.counts) - 1 for menu in menus))
    if not search.fits(everything):
        return None
    choices = [everything, *(search.places_of(start) for start in starts)]
    choices += [search.around(places) for places in (nothing, everything)]
    ordered = sorted({places for places in choices if places is not None}, key=search.order)
    best = search.improved(ordered[0])
    for places in ordered[
        1:
    ]:  # where costs are many or dear, the most promising one is all there is time for
        if search.asked < _ENOUGH_COSTS:
            best = min(best, search.improved(places), key=search.order)
    return counts_at(menus, best)


def least_left(menus: Sequence[Menu], limit: CountLimit) -> dict[str, int]:
    """Return the choice that leaves least of what is limited, about; where less is never dearer, exactly."""
    search = _Search(menus, [limit])
    return counts_at(menus, search.cheapest(tuple(len(menu.counts) - 1 for menu in menus)))


class _Search:
    """Choices within limits of costs that are no sums over groups."""

    def __init__(self, menus: Sequence[Menu], limits: Sequence[CountLimit]) -> None:
        self._menus = menus
        self._limits = limits
        self._keep = np.array([limit.keep for limit in limits])
        self._left: dict[Places, FloatArray] = {}
        self._along: dict[tuple[int, Places], FloatArray] = {}
        self.asked = 0  # exact costs

    # --- costs ----------------------------------------------------------------------------------------------

    def left(self, places: Places) -> FloatArray:
        """Return the exact shares that are left, float64 [limits]."""
        if places not in self._left:
            counts = counts_at(self._menus, places)
            self._left[places] = np.array([limit.left(counts) for limit in self._limits])
            self.asked += 1
        return self._left[places]

    def fits(self, places: Places) -> bool:
        """Tell whether all limits are kept."""
        return bool((self.left(places) <= self._keep).all())

    def along(self, places: Places, number: int) -> FloatArray:
        """Return what is left at every option of a group while the others stay: float64 [limits, options]."""
        key = (number, _moved(places, number, -1))
        if key not in self._along:
            rows = [self._one_along(places, number, at) for at in range(len(self._limits))]
            self._along[key] = np.array(rows)
        return self._along[key]

    def _one_along(self, places: Places, number: int, at: int) -> FloatArray:
        limit, counts = self._limits[at], self._menus[number].counts
        if limit.along is not None:
            self.asked += 1
            return limit.along(counts_at(self._menus, places), self._menus[number].name, counts)
        # A polynomial of the second degree in the count, so three exact costs give all: a group's channels
        # are inputs of some layers, outputs of others, and both of those inside a residual stream.
        options = sorted({0, places[number], len(counts) // 2, len(counts) - 1})[-4:]
        exact = [float(self.left(_moved(places, number, option))[at]) for option in options]
        if len(options) == len(counts):
            return np.array(exact)
        scaled = counts / max(1, counts[-1])
        curve = np.polynomial.Polynomial.fit(scaled[options], exact, min(2, len(options) - 1))
        return np.asarray(curve(scaled))

    # --- choices --------------------------------------------------------------------------------------------

    def order(self, places: Places) -> tuple[float, float]:
        """Return what choices are compared by: the loss, and what is left at equal losses."""
        return loss_at(self._menus, places), float(self.left(places).sum())

    def places_of(self, counts: Mapping[str, int]) -> Places | None:
        """Return the options next to counts at which as much goes, or more; None if these cost too much."""
        wanted = (int(np.searchsorted(menu.counts, counts.get(menu.name, 0))) for menu in self._menus)
        places = tuple(min(at, len(menu.counts) - 1) for at, menu in zip(wanted, self._menus, strict=True))
        return places if self.fits(places) else None

    def cheapest(self, places: Places) -> Places:
        """Return a choice that exceeds the limits least, or keeps to them, from one where most is gone."""
        for _ in range(_ROUNDS):
            if self.fits(places):
                break
            before = places
            for number in range(len(places)):
                over = np.maximum(self.along(places, number) / self._keep[:, None], 1.0).sum(axis=0)
                option = int(over.argmin())
                if over[option] < over[places[number]]:
                    places = _moved(places, number, option)
            if places == before:
                break
        return places

    def improved(self, places: Places) -> Places:
        """Return a choice within the limits that loses no more than the one given, which is within them."""
        best = places
        for _ in range(_ROUNDS):
            found = self.around(best)
            if found is None or self.order(found) >= self.order(best):
                break
            best = found
        return self._exchanged(self._given_back(best))

    def around(self, places: Places) -> Places | None:
        """Solve with the costs of single groups around a choice; correct the limits by the exact costs."""
        losses = [menu.losses for menu in self._menus]
        costs = [self.along(places, number) for number in range(len(places))]
        shift = self.left(places) - _total(costs, places)
        missed, best = (
            np.zeros(len(self._keep)),
            None,
        )  # missed: what the costs around the choice do not foresee
        for _ in range(_CORRECTIONS):
            found = choose_within(losses, costs, self._keep - shift - missed)
            if found is None:
                break
            if self.fits(found):
                given = self._given_back(found)
                if best is None or self.order(given) < self.order(best):
                    best = given
            before, missed = missed, self.left(found) - shift - _total(costs, found)
            if (np.abs(missed - before) < 1e-4).all():
                break
        return best

    def _given_back(self, places: Places, held: int = -1) -> Places:
        """Let stay what still fits, the largest loss first, until no group but one can keep more.

        Of options with the same loss the cheapest is taken, of those with the same cost the largest count.
        """
        changed = True
        while changed:
            changed = False
            open_ = [number for number in range(len(places)) if places[number] > 0 and number != held]
            for number in sorted(open_, key=lambda n: -float(self._menus[n].losses[places[n]])):
                option = self._best_that_fits(places, number)
                if option != places[number]:
                    places, changed = _moved(places, number, option), True
        return places

    def _best_that_fits(self, places: Places, number: int) -> int:
        """Return the option of a group that loses least within the limits while the others stay."""
        losses, costs = self._menus[number].losses, self.along(places, number)
        now = places[number]
        fitting: BoolArray = np.asarray((costs <= self._keep[:, None] + _ROUNDING).all(axis=0))
        able = np.flatnonzero(fitting[: now + 1])
        for option in able[np.lexsort((able, costs.sum(axis=0)[able], losses[able]))].tolist():
            if option == now or self.fits(_moved(places, number, option)):
                return int(option)
        return now

    def _exchanged(self, places: Places) -> Places:
        """Take a few steps more from one group and let another one keep more, as long as that pays."""
        while self.asked < _MOST_COSTS:
            found = next((trial for trial in self._exchanges(places) if self.fits(trial)), None)
            if found is None:
                break
            places = self._given_back(found)
        return places

    def _exchanges(self, places: Places) -> Iterator[Places]:
        """Yield the exchanges between two groups that should fit and pay, by the costs around a choice.

        The exact costs decide: what two groups have in common is not seen from one of them.
        """
        here = self.left(places)
        room = (self._keep - here)[:, None]
        costs = [self.along(places, number) - here[:, None] for number in range(len(places))]
        gains = [menu.losses[place] - menu.losses for menu, place in zip(self._menus, places, strict=True)]
        found: list[tuple[float, int, int, int, int]] = []
        for more, place in enumerate(places):
            for option in range(place + 1, min(place + _MOST_STEPS + 1, len(gains[more]))):
                freed, lost = room - costs[more][:, option, None], -gains[more][option]
                for back in range(len(places)):
                    if back == more or places[back] == 0:
                        continue
                    able = (costs[back][:, : places[back]] <= freed + _SLACK).all(axis=0)
                    gain = np.where(able, gains[back][: places[back]], -np.inf)
                    best = int(gain.argmax())
                    if gain[best] > lost * (1 + 1e-9) + 1e-15:
                        found.append((float(gain[best] - lost), more, option, back, best))
        for _, more, option, back, best in sorted(found, key=lambda each: (-each[0], each[1:]))[
            :_MOST_TRIALS
        ]:
            yield _moved(_moved(places, more, option), back, best)


def _moved(places: Places, number: int, option: int) -> Places:
    return (*places[:number], option, *places[number + 1 :])


def _total(costs: Sequence[FloatArray], places: Places) -> FloatArray:
    """Return the sums of the costs at a choice, float64 [limits]."""
    return np.asarray(sum(cost[:, place] for cost, place in zip(costs, places, strict=True)))
