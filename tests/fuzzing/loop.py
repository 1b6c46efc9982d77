"""Runs inputs in child processes, which are watched: what they raise, whether they die, hang or swell."""

from __future__ import annotations

import collections
import faulthandler
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from fuzzing.inputs import KINDS, kind_of
from onnxprune.errors import OnnxPruneError

#: Of one input.
SECONDS = 20.0
MEMORY_BYTES = 2 << 30

#: Inputs of one child; a fresh one forgets what earlier inputs left in libraries.
_BATCH = 400

_ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@dataclass
class Outcome:
    """What became of many inputs.

    Attributes:
        executions: how many ran.
        accepted: how many were read (and, where that was tried, pruned) without any error.
        refused: how many ended with one of our errors.
        failures: what went wrong in our own code, by what it was: numbers of the inputs.
        contained: native crashes and hangs while ONNX Runtime ran a model, which a worker contains.
        kinds: executions by kind of input.
    """

    executions: int = 0
    accepted: int = 0
    refused: int = 0
    failures: dict[str, list[int]] = field(default_factory=lambda: collections.defaultdict(list))
    contained: dict[str, list[int]] = field(default_factory=lambda: collections.defaultdict(list))
    kinds: collections.Counter[str] = field(default_factory=collections.Counter)

    def add(self, other: Outcome) -> None:
        """Add the counts of another one."""
        self.executions += other.executions
        self.accepted += other.accepted
        self.refused += other.refused
        self.kinds += other.kinds
        for mine, theirs in ((self.failures, other.failures), (self.contained, other.contained)):
            for what, numbers in theirs.items():
                mine[what] += numbers

    def told(self) -> str:
        """Return the counts, and what failed."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        lines = [
            f"{self.executions} inputs ({kinds}): {self.accepted} read, {self.refused} refused in one line, "
            f"{sum(map(len, self.failures.values()))} failed, "
            f"{sum(map(len, self.contained.values()))} stopped the runtime and were contained"
        ]
        for title, found in (("FAILED", self.failures), ("contained", self.contained)):
            for what, numbers in sorted(found.items(), key=lambda pair: -len(pair[1])):
                lines.append(f"  {title} {len(numbers)} x {what}; inputs {', '.join(map(str, numbers[:6]))}")
        return "\n".join(lines)


def source_of(seed: int, number: int) -> random.Random:
    """Return the source of all that is random in one input."""
    return random.Random(f"{seed}:{number}")  # noqa: S311 # nothing is kept secret with it


def make(seed: int, number: int, folder: Path) -> tuple[str, random.Random]:
    """Write an input into an empty folder; return its kind, and the source that goes on."""
    rng = source_of(seed, number)
    kind = kind_of(rng)
    KINDS[kind].write(folder, rng)
    return kind, rng


def fuzz(
    seed: int,
    first: int,
    count: int,
    *,
    keep: Path | None = None,
    step: int = 1,
    deadline: float = float("inf"),
) -> Outcome:
    """Run inputs ``first``, ``first + step``, ... in child processes, one after another.

    Args:
        seed: of all of them.
        first: number of the first one.
        count: how many.
        keep: folder that inputs which failed are kept in, with what they did.
        step: from one number to the next.
        deadline: of `time.monotonic`, at which no other child begins.
    """
    outcome = Outcome()
    numbers = collections.deque(range(first, first + count * step, step))
    while numbers and time.monotonic() < deadline:
        batch = [numbers.popleft() for _ in range(min(_BATCH, len(numbers)))]
        left = _run_batch(seed, batch, outcome, keep)
        numbers.extendleft(reversed(left))
    return outcome


def _run_batch(seed: int, batch: list[int], outcome: Outcome, keep: Path | None) -> list[int]:
    """Run inputs in one child; return those that it did not come to."""
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(seed, batch, writing, scratch)  # does not return
    os.close(writing)
    told, state, done = b"", {"number": None, "stage": "read", "kind": ""}, 0
    since = time.monotonic()
    status = None
    try:
        while True:
            ready, _, _ = select.select([reading], [], [], max(0.0, since + SECONDS - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                status = "took too long"
                break
            piece = os.read(reading, 1 << 16)
            if not piece:
                break
            told += piece
            *lines, told = told.split(b"\n")
            for line in lines:
                word, _, rest = line.decode("utf-8", "replace").partition(" ")
                since = time.monotonic()
                if word == "begin":
                    number, kind = rest.split()
                    state = {"number": int(number), "stage": "read", "kind": kind}
                elif word == "stage":
                    state["stage"] = rest
                else:
                    _count(outcome, state, word, rest)
                    if word == "bad":
                        _keep(keep, seed, int(state["number"]), rest)
                    state["number"] = None
                    done += 1
    finally:
        os.close(reading)
        _, ended = os.waitpid(child, 0)
        shutil.rmtree(scratch, ignore_errors=True)
    why = status or _ending(ended)
    if state["number"] is None:  # between two inputs
        if done < len(batch) and not done:
            raise RuntimeError(f"the child can't begin: {why}")
        return batch[done:]
    found = outcome.contained if state["stage"] == "run" else outcome.failures
    what = f"{state['kind']} {state['stage']}: {why}"
    found[what].append(int(state["number"]))
    _done(outcome, state)
    _keep(keep, seed, int(state["number"]), what)
    return batch[batch.index(int(state["number"])) + 1 :]


def _done(outcome: Outcome, state: dict[str, object]) -> None:
    outcome.executions += 1
    outcome.kinds[str(state["kind"])] += 1


def _count(outcome: Outcome, state: dict[str, object], word: str, rest: str) -> None:
    _done(outcome, state)
    if word == "bad":
        outcome.failures[rest].append(int(str(state["number"])))
    else:
        outcome.accepted += word == "fine"
        outcome.refused += word == "refused"


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"died of {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with status {os.WEXITSTATUS(status)}"


def _keep(keep: Path | None, seed: int, number: int, what: str) -> None:
    if keep is None:
        return
    folder = keep / f"{seed}-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    make(seed, number, folder)
    (folder / "what.txt").write_text(f"{what}\n", encoding="utf-8")


# --- in the child -------------------------------------------------------------------------------------------


def _child(seed: int, batch: list[int], writing: int, scratch: Path) -> None:
    try:
        faulthandler.disable()
        silent = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silent, descriptor)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size_bytes + MEMORY_BYTES,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30,) * 2)
        warnings.simplefilter("ignore")

        def tell(text: str) -> None:
            os.write(writing, f"{text}\n".encode("utf-8", "replace"))

        for number in batch:
            folder = scratch / str(number)
            folder.mkdir()
            tell(f"begin {number} {kind_of(source_of(seed, number))}")
            kind, rng = make(seed, number, folder)
            tell(_verdict(kind, folder, rng, tell))
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)
    except BaseException:  # noqa: BLE001 # the parent says so
        os._exit(99)


def _verdict(kind: str, folder: Path, rng: random.Random, tell: object) -> str:
    stage = ["read"]

    def told(name: str) -> None:
        stage[0] = name
        tell(f"stage {name}")  # type: ignore[operator]

    try:
        KINDS[kind].read(folder, rng, told)
    except OnnxPruneError as error:
        text = str(error)
        if _ODD.search(text):
            return f"bad {kind} {stage[0]}: no plain line: {type(error).__name__} {text[:150]!r}"
        return "refused"
    except BaseException as error:  # noqa: BLE001 # what this is all about
        return f"bad {kind} {stage[0]}: {_signature(error)}"
    return "fine"


def _signature(error: BaseException) -> str:
    """Return what tells a failure from others: its type, and the last place in our code."""
    frames = traceback.extract_tb(error.__traceback__)[-300:]
    ours = [frame for frame in frames if "/onnxprune/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    text = re.sub(r"[^ -~]|0x[0-9a-f]+", "?", str(error).partition("\n")[0])[:100]
    return f"{type(error).__name__} at {place}: {text}"


def run_one(seed: int, number: int) -> None:
    """Run one input in this process, with its traceback if it fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kind, rng = make(seed, number, folder)
        print(
            f"{kind}: {', '.join(sorted(str(p.relative_to(folder)) for p in folder.rglob('*')))}",
            file=sys.stderr,
        )
        KINDS[kind].read(folder, rng, lambda stage: print(f"stage: {stage}", file=sys.stderr))
