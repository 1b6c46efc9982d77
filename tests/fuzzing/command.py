"""The long run: ``python -m tests.fuzzing``."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

from fuzzing.loop import Outcome, fuzz, run_one


def main() -> int:
    """Run inputs; return 1 if any failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--count", type=int, default=200_000, help="inputs to run")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no more than this")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzzing-failures"), help="folder for inputs that failed"
    )
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run one input here, with its traceback")
    given = parser.parse_args()
    if given.only is not None:
        run_one(given.seed, given.only)
        return 0
    deadline = time.monotonic() + given.minutes * 60
    shares = [
        (
            given.seed,
            given.first + job,
            -(-(given.count - job) // given.jobs),
            given.keep,
            given.jobs,
            deadline,
        )
        for job in range(given.jobs)
    ]
    started = time.monotonic()
    outcome = Outcome()
    if given.jobs == 1:
        outcome.add(_share(shares[0]))
    else:
        with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
            for found in pool.imap_unordered(_share, shares):
                outcome.add(found)
    seconds = time.monotonic() - started
    print(f"seed {given.seed}: {outcome.told()}")
    print(f"{seconds:.0f} s, {outcome.executions / max(seconds, 1e-9):.0f} inputs/s")
    return 1 if outcome.failures else 0


def _share(share: tuple[int, int, int, Path, int, float]) -> Outcome:
    seed, first, count, keep, step, deadline = share
    total = Outcome()
    done = 0
    while done < count and time.monotonic() < deadline:
        part = min(10_000, count - done)
        total.add(fuzz(seed, first + done * step, part, keep=keep, step=step, deadline=deadline))
        done += part
        if first == 0 or done == count:
            print(f"... {total.told()}", flush=True)
    return total
