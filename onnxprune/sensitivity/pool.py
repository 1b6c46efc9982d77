"""Tasks over processes: in any order, each result with its number, and nobody left behind.

Every worker builds what runs tasks once, and keeps it. A worker that dies takes down a pool of
`concurrent.futures` without saying what it was at, so those that were under way are suspects: each is tried
again alone, and the one that kills its worker again has failed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext
from multiprocessing.synchronize import Barrier, Event
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_runner: Callable[[Any], Any] | None = None
_stop: Event | None = None


class Stopped(Exception):
    """The process that started this worker is about to end."""


class Died(Exception):
    """A worker died twice at the same task, with nobody else at work."""


def check_stop() -> None:
    """Leave a task early once it is of no use any more; may be called often.

    Raises:
        Stopped: this is a worker, and the others are gone.
    """
    if _stop is not None and _stop.is_set():
        raise Stopped


class Pool(Generic[Task, Result]):
    """Workers of their own processes, as a context: leaving it ends them, whatever happened.

    Args:
        build: called once in each worker, with ``arguments``, for what runs its tasks. Importable by name.
        arguments: what can be pickled.
        jobs: processes.
    """

    def __init__(
        self, build: Callable[..., Callable[[Task], Result]], arguments: Sequence[Any], jobs: int
    ) -> None:
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._build = build
        self._arguments = tuple(arguments)
        self._jobs = jobs
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Pool[Task, Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._close()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Died]]:
        """Yield the number of each task and its result, as they come.

        Whatever a task raises is raised here.
        """
        waiting = list(range(len(tasks)))[::-1]
        running: dict[Future[Result], int] = {}
        suspects: list[int] = []
        while waiting or running:
            while waiting and len(running) < self._jobs and not suspects:
                future = self._submit(tasks[waiting[-1]], min(self._jobs, len(waiting)))
                if (
                    future is None
                ):  # a worker has just died: of what is running, or of itself between two tasks
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
                    yield number, future.result()
            if suspects and not running:
                self._close()
                for number in sorted(set(suspects)):
                    yield number, self._alone(tasks[number])
                suspects = []

    def _alone(self, task: Task) -> Result | Died:
        future = self._submit(task, 1)
        if future is not None:
            try:
                return future.result()
            except BrokenProcessPool:
                pass  # that is the answer
        self._close()
        return Died()

    def _submit(self, task: Task, workers: int) -> Future[Result] | None:
        """Hand a task to the workers, which are started as needed; None if one of them has just died."""
        with _interrupts_blocked(), contextlib.suppress(BrokenProcessPool):
            if self._executor is None:
                self._executor = self._start(workers)
            return self._executor.submit(_run, task)
        return None

    def _start(self, workers: int) -> ProcessPoolExecutor:
        """Start all workers, before any of them has a task.

        Left alone, the pool starts a worker with each task. Where another dies of its task in that moment,
        it waits for the new one for ever. None of the first tasks, which do nothing, is done before all have
        started, so each of them starts one.
        """
        everybody = self._context.Barrier(workers)
        executor = ProcessPoolExecutor(
            workers,
            mp_context=self._context,
            initializer=_begin,
            initargs=(everybody, self._stop, self._build, self._arguments),
        )
        for _ in range(workers):
            executor.submit(_nothing)
        return executor

    def _close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None


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


def _begin(everybody: Barrier, stop: Event, build: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    global _runner, _stop  # one per process: that is how a pool hands things to its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # for systems where it could not be blocked
    everybody.wait()
    _stop = stop
    _runner = build(*arguments)


def _nothing() -> None:
    """Be there."""


def _run(task: Any) -> Any:
    if _runner is None:
        raise RuntimeError("the worker was not set up")
    check_stop()
    return _runner(task)
