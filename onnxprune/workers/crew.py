"""Tasks -> results, whoever works."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from onnxprune.workers.files import Files
from onnxprune.workers.setting import Workers
from onnxprune.workers.tasks import Bench, opened

Task = TypeVar("Task")
Result = TypeVar("Result")


class Died(Exception):
    """Every worker that took this task died of it."""


@dataclass(frozen=True, slots=True)
class Job(Generic[Task, Result]):
    """What every worker is told once.

    Attributes:
        build: makes what runs tasks, in a worker. Importable by name.
        arguments: of ``build``; small, or `Files`, in whose place a folder stands there.
        here: makes what runs tasks in this process; None if ``build`` does so here, too.
        alone: tasks measure time all the time: no machine gets two of them at once.
        same_machine: tasks measure time now and then: they go to machines with this one's processor alone.
    """

    build: Callable[..., Callable[[Task], Result]]
    arguments: tuple[Any, ...]
    here: Callable[[], Callable[[Task], Result]] | None = None
    alone: bool = False
    same_machine: bool = False


class Crew(Protocol[Task, Result]):
    """Those who work; as a context: leaving it ends what runs, whatever happened."""

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Died]]:
        """Yield the number of each task and its result, as they come.

        Raises:
            OnnxPruneError: what a task raised.
            WorkersError: no worker is left.
        """

    def __enter__(self) -> Crew[Task, Result]: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> bool | None: ...


def hire(workers: Workers, job: Job[Task, Result], tasks: int) -> Crew[Task, Result]:
    """Return those who work; they start with the first task.

    Args:
        workers: who works.
        job: what they are told.
        tasks: how many there will be at once: no more processes are started here.

    Raises:
        MissingExtra: a cluster is asked for, and the package for that is not installed.
    """
    if workers.scheduler is not None:
        from onnxprune.workers.cluster import Cluster

        return Cluster(workers.scheduler, job)
    if workers.count(tasks) > 1 and not job.alone:  # on one machine, time is measured once at a time
        from onnxprune.workers.processes import Processes

        return Processes(job, workers.count(tasks))
    return _Here(job)


class _Here(contextlib.AbstractContextManager["_Here[Task, Result]"], Generic[Task, Result]):
    """This process does one task after the other."""

    def __init__(self, job: Job[Task, Result]) -> None:
        here = job.here
        self._bench = Bench(job.build, placed(job.arguments)) if here is None else Bench(here, ())

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Died]]:
        for number, task in enumerate(tasks):
            yield number, opened(self._bench.run(task))

    def __exit__(self, *_: object) -> None:
        """Nobody else is at work."""


def placed(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Return arguments with folders of this machine in place of files."""
    return tuple(each.folder if isinstance(each, Files) else each for each in arguments)
