"""What a user may ask an allocation for: an amount or a target, a scope, a floor."""

from __future__ import annotations

from collections.abc import Iterable, Sized

from onnxprune.errors import UsageError
from onnxprune.registry import did_you_mean


def check_wishes(
    amount: float | None, limits: Sized, scope: str, scopes: Iterable[str], floor: float, of: str
) -> None:
    """Refuse what makes no sense.

    Args:
        amount: share to remove, in [0, 1), or None.
        limits: on what may stay, perhaps none.
        scope: where the amount counts.
        scopes: the scopes there are.
        floor: least share that stays, in [0, 1].
        of: what the floor is a share of, for people.

    Raises:
        UsageError: neither or both of amount and limits, a value out of range, an unknown scope.
    """
    if (amount is None) == (len(limits) == 0):
        raise UsageError("give either an amount or a target, not both")
    known = list(scopes)
    if scope not in known:
        hint = did_you_mean(scope, known)
        raise UsageError(f"unknown scope {scope!r} for this pattern{hint}; known: {', '.join(known)}")
    if amount is not None and not 0 <= amount < 1:
        raise UsageError(f"the amount must lie in [0, 1), not {amount}")
    if not 0 <= floor <= 1:
        raise UsageError(f"the floor is a share of each {of}, in [0, 1], not {floor}")
