"""How much is removed by which round."""

from __future__ import annotations


def cubic(final: float, rounds: int, *, initial: float = 0.0) -> tuple[float, ...]:
    """Return the share that is removed by the end of each round: fast at first, slowly at the end.

    ``s_t = final + (initial - final) * (1 - t / rounds)**3`` for t = 1 .. rounds (Zhu and Gupta 2017, "To
    Prune, or Not to Prune", eq. 1).

    Args:
        final: share that is removed in the end.
        rounds: how many there are, at least one.
        initial: share that is removed before the first.

    Raises:
        ValueError: there is no round.
    """
    if rounds < 1:
        raise ValueError(f"at least one round, not {rounds}")
    return tuple(
        final if t == rounds else final + (initial - final) * (1 - t / rounds) ** 3
        for t in range(1, rounds + 1)
    )
