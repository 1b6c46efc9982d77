"""Workers of a Dask cluster: files are sent to those that lack them, and each gets one task at a time.

What Dask keeps: where workers are and whether they live, tasks, results, cancellation, TLS. What is added
here: files by their hash, equal versions, that everything that goes wrong is one line, and who gets a task. A
task is bound to its worker; if that dies, the task begins again with another one. (Dask would do so by itself
for tasks that are bound to nobody, and give two of them to one worker. One that only prefers a worker is
forgotten if all workers die at once and others come.)
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import pickle
import time
import uuid
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic

from onnxprune.errors import WorkersError, require_extra
from onnxprune.machine import processor
from onnxprune.messages import one_line
from onnxprune.workers.crew import Died, Job, Result, Task
from onnxprune.workers.depot import About, Missing, Order, Unlike, describe, missing, receive, run_task
from onnxprune.workers.files import Entry, Files, Shipment
from onnxprune.workers.tasks import opened
from onnxprune.workers.versions import difference, versions

_LOST = object()

#: How long a scheduler may take to answer, and how long there may be no worker at all.
CONNECT_SECONDS = 5.0
PATIENCE_SECONDS = 30.0

#: How often is looked for new workers, while results are waited for.
_LOOK_SECONDS = 1.0

#: How long goodbyes may take.
_CLOSE_SECONDS = 2.0

#: Bytes of a file that travel at once.
_PIECE_BYTES = 1 << 23

#: Workers that may die of a task, and workers that may lose the files of one, before it is given up.
_MOST_DEATHS = 3
_MOST_SENDINGS = 10

#: How long a result may take to arrive once it is there, before is looked whether its worker lives; twice as
#: long the next time.
_RESULT_SECONDS = 5.0


class Cluster(contextlib.AbstractContextManager["Cluster[Task, Result]"], Generic[Task, Result]):
    """The workers of a scheduler, as a context: leaving it cancels what runs.

    Args:
        address: of the scheduler.
        job: what they are told.

    Attributes:
        sent_bytes: of files, counted once for each worker that they went to.

    Raises:
        MissingExtra: Dask is not installed.
    """

    def __init__(self, address: str, job: Job[Task, Result]) -> None:
        require_extra("scheduler", "distributed", "distributed")
        self.sent_bytes = 0
        self._address = address
        self._job = job
        self._client: Any = None
        self._sources: dict[str, tuple[Files, str]] = {}
        self._workers: dict[str, About] = {}
        self._quiet = contextlib.ExitStack()

    def __enter__(self) -> Cluster[Task, Result]:
        from distributed import Client

        self._quiet.enter_context(_silence())
        try:
            self._client = Client(
                self._address, timeout=CONNECT_SECONDS, set_as_default=False, name="onnxprune"
            )
        except Exception as error:  # noqa: BLE001 # whoever answers there, and whatever
            self._quiet.close()
            raise WorkersError(
                f"no Dask scheduler answers at {self._address} ({one_line(error, 120)}); start one with "
                "'dask scheduler', or check the address"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):  # it may be what failed
            self._client.close(timeout=_CLOSE_SECONDS)  # lets go of every task: workers stop them
        self._quiet.close()

    # --- tasks ----------------------------------------------------------------------------------------------

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Result | Died]]:
        """Yield the number of each task and its result, as they come.

        Raises:
            WorkersError: no worker is left, one has other versions, or the scheduler is gone.
        """
        order = self._order()
        waiting = deque(range(len(tasks)))
        running: dict[Any, tuple[int, str]] = {}
        deaths: Counter[int] = Counter()
        lost: Counter[int] = Counter()
        sendings = 0
        seen = time.monotonic()
        while waiting or running:
            self._meet_workers(order)
            for future in [each for each, (_, address) in running.items() if address not in self._workers]:
                number, _ = running.pop(future)
                future.cancel()
                deaths[number] += 1
                if deaths[number] < _MOST_DEATHS:
                    waiting.append(number)
                else:
                    yield number, Died()
            taken = {address for _, address in running.values()}
            for address in self._places():
                if waiting and address not in taken:
                    number = waiting.popleft()
                    running[self._submit(order, tasks[number], address)] = (number, address)
            if self._workers:
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE_SECONDS:
                raise WorkersError(f"{self._address} has had no worker for {PATIENCE_SECONDS:.0f} seconds")
            for future in self._done(running):
                number, _ = running[future]
                answer = self._answer(future, _RESULT_SECONDS * 2 ** lost[number])
                if answer is _LOST:
                    lost[number] += 1
                    continue
                del running[future]
                if isinstance(answer, Missing):
                    sendings += 1
                    if sendings > _MOST_SENDINGS * len(tasks):
                        raise WorkersError("files that are sent to workers do not stay there")
                    self._send(order.shipments, [answer.address])
                    waiting.appendleft(number)
                elif isinstance(answer, Unlike):
                    raise _unlike(answer.address, answer.versions)
                else:
                    yield number, opened(answer)

    def _order(self) -> Order:
        """Return what workers are told, files being known by their hash."""
        arguments = []
        for each in self._job.arguments:
            if isinstance(each, Files):
                shipment = each.shipment()
                self._sources.update({entry.digest: (each, entry.name) for entry in shipment.entries})
                arguments.append(shipment)
            else:
                arguments.append(each)
        told = (self._job.build, tuple(arguments))
        return Order(hashlib.sha256(pickle.dumps(told)).hexdigest(), *told, versions())

    def _submit(self, order: Order, task: Task, address: str) -> Any:
        with self._watched():
            return self._client.submit(
                run_task, order, task, key=f"onnxprune-{uuid.uuid4().hex}", pure=False, workers=[address],
            )  # fmt: skip

    def _done(self, running: dict[Any, tuple[int, str]]) -> list[Any]:
        """Return the tasks that are done, after some time none."""
        from distributed import wait

        if not running:
            time.sleep(_LOOK_SECONDS)
            return []
        late = contextlib.suppress(TimeoutError, asyncio.TimeoutError)
        with self._watched(), late, self._client.as_current():
            wait(list(running), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
        return [future for future in running if future.done()]

    def _answer(self, future: Any, seconds: float) -> Any:
        """Return what a task gave, or that it went down with its worker in this moment."""
        with self._watched():
            try:
                return future.result(timeout=seconds)
            except (TimeoutError, asyncio.TimeoutError):  # one of ours, raised by a task, is no such error
                return _LOST

    # --- workers --------------------------------------------------------------------------------------------

    def _places(self) -> list[str]:
        """Return the addresses of workers that may each have a task: all, or one of each host."""
        if not self._job.alone:
            return list(self._workers)
        return list({about.host: address for address, about in reversed(self._workers.items())}.values())

    def _meet_workers(self, order: Order) -> None:
        """Look who is there; those who are new are asked what they run, and get the files that they lack."""
        with self._watched():
            present = set(self._client.nthreads())
        self._workers = {address: about for address, about in self._workers.items() if address in present}
        fresh = sorted(present - self._workers.keys())
        if not fresh:
            return
        found: dict[str, About] = {}
        for address, about in self._ask(describe, workers=fresh).items():
            if isinstance(about, ImportError | AttributeError):
                raise WorkersError(
                    f"worker {address} lacks onnxprune, or has another one: install the same everywhere "
                    f"({one_line(about, 120)})"
                )
            if isinstance(about, About):  # others are gone already
                if difference(about.versions) is not None:
                    raise _unlike(address, about.versions)
                found[address] = about
        if self._job.alone or self._job.same_machine:
            found = {at: about for at, about in found.items() if about.processor == processor()}
            if not found and not self._workers:
                raise WorkersError(
                    f"no worker of {self._address} has the processor of this machine: times can't be compared"
                )
        self._send(order.shipments, list(found))
        self._workers.update(found)

    def _send(self, shipments: Sequence[Shipment], addresses: Sequence[str]) -> None:
        """Send files to workers that lack them: each file is read once, in pieces, for all of them."""
        lacking: dict[Entry, list[str]] = {}
        for address, entries in self._ask(missing, shipments, workers=addresses).items():
            for entry in entries if isinstance(entries, list) else ():
                lacking.setdefault(entry, []).append(address)
        for entry, places in lacking.items():
            files, name = self._sources[entry.digest]
            with (files.folder / name).open("rb") as stream:
                offset = 0
                while piece := stream.read(_PIECE_BYTES):
                    self._deliver(entry, offset, piece, places)
                    offset += len(piece)
                if entry.size == 0:
                    self._deliver(entry, 0, b"", places)
            self.sent_bytes += entry.size * len(places)

    def _deliver(self, entry: Entry, offset: int, piece: bytes, addresses: Sequence[str]) -> None:
        for address, answer in self._ask(receive, entry, offset, piece, workers=addresses).items():
            if isinstance(answer, WorkersError):
                raise WorkersError(f"worker {address}: {answer}")

    def _ask(self, question: Callable[..., Any], *arguments: Any, workers: Sequence[str]) -> dict[str, Any]:
        """Run something small on some workers; where that fails, the exception is the answer."""
        if not workers:
            return {}
        with self._watched():
            answers: dict[str, Any] = self._client.run(
                question, *arguments, workers=list(workers), on_error="return"
            )
        return answers

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Say in one line that the scheduler is gone."""
        from distributed import CancelledError

        try:
            yield
        except WorkersError:
            raise
        except (OSError, CancelledError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise WorkersError(
                f"the connection to {self._address} was lost: {one_line(error, 120)}"
            ) from None


def _unlike(address: str, theirs: Any) -> WorkersError:
    return WorkersError(f"worker {address} has {difference(theirs)}; install the same everywhere")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the log of Dask off stderr: what matters is said in one line."""
    names = [
        name for name in logging.root.manager.loggerDict if name.split(".")[0] in ("distributed", "tornado")
    ]
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="distributed")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
