"""A worker of a Dask cluster: the files it keeps, by their hash, and the tasks it runs, one at a time.

What is here runs in the worker. Files arrive in pieces, which go through the scheduler and stay nowhere; they
are kept in the worker's own folder, which Dask removes with the worker.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import WorkersError
from onnxprune.machine import processor
from onnxprune.messages import one_line
from onnxprune.resident import keep_freed_memory
from onnxprune.workers.files import Entry, Shipment, check_name
from onnxprune.workers.tasks import Bench
from onnxprune.workers.versions import difference, versions

#: Shipments, and things that run tasks, that a worker keeps: those that were used last.
_MOST_SHIPMENTS = 8
_MOST_BENCHES = 2

_busy = threading.Lock()  # one task at a time in a process: what runs them is not made for threads
_depots: dict[str, Depot] = {}


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker needs to know of a job, sent with each of its tasks.

    Attributes:
        number: of the job: the same where the same is told, so that what runs tasks is built once.
        build: makes what runs tasks.
        arguments: of ``build``, with shipments in place of files.
        versions: of the client.
    """

    number: str
    build: Callable[..., Callable[[Any], Any]]
    arguments: tuple[Any, ...]
    versions: Mapping[str, str]

    @property
    def shipments(self) -> tuple[Shipment, ...]:
        """The files that the arguments stand for."""
        return tuple(each for each in self.arguments if isinstance(each, Shipment))


@dataclass(frozen=True, slots=True)
class Missing:
    """Files are missing here: the worker is a new one.

    Attributes:
        address: of the worker.
    """

    address: str


@dataclass(frozen=True, slots=True)
class Unlike:
    """The worker runs other versions.

    Attributes:
        address: of the worker.
        versions: of what it runs.
    """

    address: str
    versions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class About:
    """What a worker says of itself.

    Attributes:
        host: name of its machine.
        processor: of its machine, in one line.
        versions: of what it runs.
    """

    host: str
    processor: str
    versions: Mapping[str, str]


class Depot:
    """Files and benches of one worker.

    Args:
        folder: its own.
    """

    def __init__(self, folder: Path) -> None:
        keep_freed_memory()
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._shipments: OrderedDict[str, Shipment] = OrderedDict()
        self._benches: OrderedDict[str, Bench] = OrderedDict()
        self._arriving: dict[str, Any] = {}
        self._lock = threading.RLock()

    def missing(self, shipments: Sequence[Shipment]) -> list[Entry]:
        """Return the files of some shipments that are not here."""
        with self._lock:
            wanted = {entry.digest: entry for shipment in shipments for entry in shipment.entries}
            return [entry for digest, entry in wanted.items() if digest not in self._files]

    def receive(self, entry: Entry, offset: int, piece: bytes) -> None:
        """Append a piece to a file; the last one completes it.

        Raises:
            WorkersError: it came out of order, can't be kept, or is not what it should be.
        """
        with self._lock:
            part = self._folder / f"{entry.digest}.part"
            try:
                if offset == 0:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    self._arriving[entry.digest] = hashlib.sha256()
                with part.open("wb" if offset == 0 else "r+b") as stream:
                    if stream.seek(0, os.SEEK_END) != offset:
                        raise WorkersError("a piece of a file came out of order")
                    stream.write(piece)
                digest = self._arriving[entry.digest]
                digest.update(piece)
                if offset + len(piece) == entry.size:
                    del self._arriving[entry.digest]
                    if digest.hexdigest() != entry.digest:
                        raise WorkersError("a file changed while it was sent")
                    self._files[entry.digest] = part.rename(self._folder / entry.digest)
            except (OSError, KeyError) as error:
                raise WorkersError(f"a file can't be kept: {one_line(error)}") from None

    def folder_of(self, shipment: Shipment) -> Path:
        """Return a folder with the files of a shipment, under their names."""
        with self._lock:
            folder = self._folder / "sets" / shipment.digest
            if shipment.digest not in self._shipments:
                for entry in shipment.entries:
                    check_name(entry.name)
                    target = folder / entry.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    source = self._files[entry.digest]
                    if source.parent == self._folder:  # nobody uses it yet
                        self._files[entry.digest] = source.rename(target)
                    else:  # no link: a data file with two names is refused
                        shutil.copyfile(source, target)
            self._shipments[shipment.digest] = shipment
            self._shipments.move_to_end(shipment.digest)
            return folder

    def bench(self, order: Order) -> Bench:
        """Return what runs the tasks of a job."""
        with self._lock:
            if order.number not in self._benches:
                while len(self._benches) >= _MOST_BENCHES:
                    self._benches.popitem(last=False)
                arguments = tuple(
                    self.folder_of(each) if isinstance(each, Shipment) else each for each in order.arguments
                )
                self._tidy({shipment.digest for shipment in order.shipments})
                self._benches[order.number] = Bench(order.build, arguments, _is_cancelled)
            self._benches.move_to_end(order.number)
            return self._benches[order.number]

    def _tidy(self, needed: set[str]) -> None:
        """Remove the shipments that were not used for longest."""
        for digest in list(self._shipments):
            if len(self._shipments) <= _MOST_SHIPMENTS:
                break
            if digest not in needed:
                folder = self._folder / "sets" / digest
                del self._shipments[digest]
                self._files = {name: path for name, path in self._files.items() if folder not in path.parents}
                shutil.rmtree(folder, ignore_errors=True)


def _depot_of(worker: Any) -> Depot:
    folder = str(worker.local_directory)
    if folder not in _depots:
        _depots[folder] = Depot(Path(folder) / "onnxprune")
    return _depots[folder]


def describe() -> About:
    """Say what this worker is."""
    return About(platform.node(), processor(), versions())


def missing(shipments: Sequence[Shipment], dask_worker: Any) -> list[Entry]:
    """Return the files that this worker does not have."""
    return _depot_of(dask_worker).missing(shipments)


def receive(entry: Entry, offset: int, piece: bytes, dask_worker: Any) -> None:
    """Take in a piece of a file."""
    _depot_of(dask_worker).receive(entry, offset, piece)


def run_task(order: Order, task: Any) -> Any:
    """Run a task, unless something is missing for it.

    Returns:
        The result, a `Failure`, or why it was not run: `Missing`, `Unlike`.
    """
    from distributed import get_worker

    worker = get_worker()
    with _busy:
        depot = _depot_of(worker)
        if difference(order.versions) is not None:
            return Unlike(worker.address, versions())
        if depot.missing(order.shipments):
            return Missing(worker.address)
        return depot.bench(order).run(task)


def _is_cancelled() -> bool:
    """Tell whether nobody waits for the task that runs in this thread: its client let go, or died."""
    from distributed import get_worker

    worker = get_worker()
    known = worker.state.tasks.get(worker.get_current_task())
    return known is None or known.state == "cancelled"
