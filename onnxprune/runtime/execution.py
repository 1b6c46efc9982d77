"""Where and how a model runs: every setting that can change how long that takes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from onnxprune.errors import UsageError
from onnxprune.messages import visible


@dataclass(frozen=True, slots=True)
class Execution:
    """Where and how a model runs.

    Attributes:
        provider: a key of `onnxprune.runtime.PROVIDERS`, or ONNX Runtime's own name of one.
        threads: threads of one operator, the calling one among them; 0 for one per core.
        options: of the provider, as ONNX Runtime calls them, with their values.
        spinning: let idle threads spin. Faster with several threads on a machine of one's own; on a shared
            one they burn what others need.
        arena: keep the memory of a run for the next one; without, it goes back to the system.
        pin: cores to run on, such as ``"0-1"`` or ``"0,2"``, one for each thread: the calling thread takes
            the first (see `pinned`), ONNX Runtime's own threads the others. None leaves that to the system.
    """

    provider: str = "cpu"
    threads: int = 1
    options: tuple[tuple[str, str], ...] = ()
    spinning: bool = False
    arena: bool = True
    pin: str | None = None

    @property
    def key(self) -> str:
        """All settings as one line of text, the same in whatever order options were given."""
        return json.dumps(
            {
                "provider": self.provider,
                "threads": self.threads,
                "options": sorted(self.options),
                "spinning": self.spinning,
                "arena": self.arena,
                "pin": self.pin,
            },
            ensure_ascii=False,
        )

    def cores(self) -> tuple[int, ...]:
        """Return the cores of ``pin``, in its order; none where that is None.

        Raises:
            UsageError: ``pin`` is malformed, names a core twice or one that the process may not use, or does
                not give each thread its core.
        """
        if self.pin is None:
            return ()
        cores = tuple(core for item in self.pin.split(",") for core in _range(item, self.pin))
        if len(set(cores)) < len(cores):
            raise UsageError(f"pinning to {visible(self.pin)}: a core is named twice")
        if len(cores) != self.threads:
            raise UsageError(
                f"pinning to {visible(self.pin)}: {len(cores)} cores for {self.threads or 'any number of'} "
                "threads; give each thread one"
            )
        if not hasattr(os, "sched_getaffinity"):
            raise UsageError("this system does not let a process choose its cores; leave pinning out")
        before = os.sched_getaffinity(0)
        try:
            for core in cores:  # ONNX Runtime would go on without pinning
                os.sched_setaffinity(0, {core})
        except (OSError, ValueError):
            raise UsageError(
                f"pinning to {visible(self.pin)}: this process may not use core {core}"
            ) from None
        finally:
            os.sched_setaffinity(0, before)
        return cores


#: One thread on the CPU.
DEFAULT = Execution()


def _range(item: str, pin: str) -> range:
    first, dash, last = item.strip().partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or len(item) > 9:
        raise UsageError(f"pinning to {visible(pin)}: that is no list of cores such as 0-1 or 0,2")
    return range(int(first), int(last or first) + 1)


@contextlib.contextmanager
def pinned(execution: Execution) -> Iterator[None]:
    """Keep the calling thread on the first core of ``execution.pin`` meanwhile, if it has one.

    ONNX Runtime runs part of every operator, and all of those that it does not split, in the thread that
    calls it, and pins only the threads that it makes itself.

    Raises:
        UsageError: as `Execution.cores`.
    """
    cores = execution.cores()
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cores[0]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
