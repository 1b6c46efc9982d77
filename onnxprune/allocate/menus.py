"""What each group offers: how much may go, and what is lost with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxprune.allocate.knapsack import choose_options
from onnxprune.types import Curve, FloatArray

Counts = npt.NDArray[np.int64]

#: Where each group stands: the number of an option of each menu.
Places = tuple[int, ...]


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
    return counts_at(menus, places or tuple(len(menu.counts) - 1 for menu in menus))


def counts_at(menus: Sequence[Menu], places: Places) -> dict[str, int]:
    """Return how much goes from each group, by name."""
    return {menu.name: int(menu.counts[place]) for menu, place in zip(menus, places, strict=True)}


def loss_at(menus: Sequence[Menu], places: Places) -> float:
    """Return the predicted loss: the sum of what each group loses."""
    return float(sum(menu.losses[place] for menu, place in zip(menus, places, strict=True)))
