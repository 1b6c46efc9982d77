"""Processes of this machine, by loky: cores shared out, each result with its number, nobody left behind.

What loky keeps: processes that start clean, results as they come, notice of a worker that dies, the end of
all of them on request, idle or not. What it leaves open is whose task killed a worker: a broken pool fails
every task that was under way. So these are suspects: each is tried again alone, and the one that kills its
worker again has failed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Generic

from loky import cpu_count
from loky import process_executor as loky

from onnxprune.containment.worker import die_with_parent, leave_no_core, limit_memory
from onnxprune.workers.crew import Died, Job, Result, Task, placed
from onnxprune.workers.tasks import Bench, opened

#: What libraries read for the number of their threads.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
            "VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS")  # fmt: skip

#: How often a worker looks whether the process that started it is still there.
_SECONDS_BETWEEN_LOOKS = 1.0

_bench: Bench | None = None


class Processes(contextlib.AbstractContextManager["Processes[Task, Result]"], Generic[Task, Result]):
    """Workers of their own processes, as a context: leaving it ends them, whatever happened.

    Args:
        job: what they are told.
        count: how many there are.
    """

    def __init__(self, job: Job[Task, Result], count: int) -> None:
        self._start = (job.build, placed(job.arguments), os.getpid(), _memory_bytes(count))
        self._count = count
        self._threads = str(max(1, cpu_count() // count))
        self._pool: loky.ProcessPoolExecutor | None = None

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Died]]:
        """Yield the number of each task and its result, as they come."""
        waiting = list(range(len(tasks)))[::-1]
        running: dict[Future[Any], int] = {}
        suspects: list[int] = []
        while waiting or running:
            while waiting and len(running) < self._count and not suspects:
                future = self._submit(tasks[waiting[-1]], self._count)
                if future is None:  # a worker has just died: of what is running, or of itself
                    if not running:
                        self._close()
                    break
                running[future] = waiting.pop()
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                number = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(number)
                else:
                    yield number, opened(future.result())
            if suspects and not running:
                self._close()
                for number in sorted(suspects):
                    yield number, self._alone(tasks[number])
                suspects = []

    def _alone(self, task: Task) -> Result | Died:
        future = self._submit(task, 1)
        with contextlib.suppress(BrokenProcessPool):  # that is the answer
            if future is not None:
                result: Result = opened(future.result())
                return result
        self._close()
        return Died()

    def _submit(self, task: Task, count: int) -> Future[Any] | None:
        """Hand a task to the workers, which are started as needed; None if one of them has just died."""
        with _interrupts_blocked(), contextlib.suppress(BrokenProcessPool):
            if self._pool is None:
                self._pool = loky.ProcessPoolExecutor(
                    count, timeout=None, initializer=_begin, initargs=self._start,
                    env=dict.fromkeys(_THREADS, self._threads),
                )  # fmt: skip
            future: Future[Any] = self._pool.submit(_run, task)
            return future
        return None

    def _close(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            with warnings.catch_warnings():  # a system without pgrep: workers have no processes of their own
                warnings.filterwarnings("ignore", message="Failed to kill subprocesses")
                pool.shutdown(wait=True, kill_workers=True)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Hold back Ctrl-C for a moment: processes that are started meanwhile never see it.

    A terminal sends it to all of them at once, and each would print a traceback while it still starts. Ours
    comes as soon as the block ends.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _memory_bytes(count: int) -> int | None:
    """Return what each of some processes may take of what this one may; None where there is no limit."""
    if os.name != "posix":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return None if soft == resource.RLIM_INFINITY else soft // count


def _begin(
    build: Callable[..., Any], arguments: tuple[Any, ...], parent: int, memory_bytes: int | None
) -> None:
    global _bench  # one per process: that is how a pool hands things to its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems where it could not be blocked
    loky._USE_PSUTIL = False  # a worker that grows is no leak: it keeps a model
    if memory_bytes is not None:
        limit_memory(memory_bytes)
    die_with_parent()
    leave_no_core()
    if sys.platform != "win32":  # where the system does not do it
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    _bench = Bench(build, arguments)


def _leave_with(parent: int) -> None:
    """End this process once the one that started it is gone, killed perhaps."""
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _run(task: Any) -> Any:
    if _bench is None:
        raise RuntimeError("the worker was not set up")
    return _bench.run(task)
