"""Candidates with data: the same, repaired as ``prune --data --recover reconstruct`` repairs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from onnxprune.advice.candidates import Candidate, Made
from onnxprune.advice.trials import Clock
from onnxprune.data import Dataset
from onnxprune.errors import RuntimeFailure
from onnxprune.pipeline import prune

#: Of what is left of the time, what one repair may take.
_SHARE = 0.4

_TOO_LONG = "repairing takes longer than the --time-limit allows"

_RECOVER = "reconstruct"


def repaired(
    model: ir.Model, candidates: Sequence[Candidate], data: Dataset, clock: Clock, threads: int, seed: int
) -> list[Candidate]:
    """Return candidates with a repaired one before each that loses accuracy.

    Args:
        model: the original.
        candidates: what could be removed.
        data: samples to repair on.
        clock: what is left of the time.
        threads: of ONNX Runtime.
        seed: of everything random.
    """
    found = []
    gave_up: list[Candidate] = []  # what takes too long once does so again
    for candidate in candidates:
        if candidate.amount is not None and "align" not in candidate.options:
            found.append(_repaired(model, candidate, data, clock, gave_up, threads, seed))
        found.append(candidate)
    return found


def _repaired(
    model: ir.Model,
    candidate: Candidate,
    data: Dataset,
    clock: Clock,
    gave_up: list[Candidate],
    threads: int,
    seed: int,
) -> Candidate:
    options = {} if candidate.pattern == "layers" else dict(candidate.options)

    def make() -> Made:
        if gave_up:
            raise RuntimeFailure(_TOO_LONG)
        end = clock.left_seconds * (1 - _SHARE)

        def check(_: float) -> None:
            if clock.left_seconds < end:
                gave_up.append(candidate)
                raise RuntimeFailure(_TOO_LONG)

        result = prune(
            model, pattern=candidate.pattern, amount=candidate.amount, data=data, recover=_RECOVER,
            threads=threads, seed=seed, progress=check, **options,
        )  # fmt: skip
        before, after = result.plan.predicted
        return Made(
            result.model, after.size_bytes / max(before.size_bytes, 1), after.macs / max(before.macs, 1)
        )  # fmt: skip

    return replace(
        candidate, name=f"{candidate.name}, and repair", options={**options, "recover": _RECOVER}, make=make,
        cheap=False,
    )  # fmt: skip
