"""Moments of shards, made by others, added up here in their order."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from onnxprune.calibration.moments import Adding, Draw, Moments, Part, Sums
from onnxprune.data_files import StoredData, store
from onnxprune.errors import WorkersError
from onnxprune.ops.linear import find_linear
from onnxprune.workers import Died, Files, Job, Workers, hire
from onnxprune.workers.models import ModelName, model_as_files

#: Number of a pass, and of a shard.
Task = tuple[int, int]
Parts = list[tuple[int, Part]]


def add_elsewhere(
    adding: Adding, workers: Workers, progress: Callable[[float], None] | None
) -> Iterator[tuple[int, Moments]]:
    """Yield the place of each node, and its moments.

    Args:
        adding: what is added up.
        workers: who does it.
        progress: called after every shard with the share that is done, in (0, 1].

    Raises:
        WorkersError: they can't be used, or died.
        DataError, RuntimeFailure, LimitMissed: as of `collect_moments`.
    """
    turns, shards = adding.course.shares[0], len(adding.shards)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as name:
        folder = Path(name)
        with hire(workers, _job(adding, folder), shards) as crew:
            for turn, places in enumerate(turns):
                sums: dict[int, Sums] = {}
                early = _Early(folder)
                tasks = [(turn, shard) for shard in range(shards)]
                for done, (shard, found) in enumerate(crew.run(tasks), start=1):
                    if isinstance(found, Died):
                        raise WorkersError(
                            "workers that added up moments died; they may need more memory than there is"
                        )
                    for parts in early.in_order(shard, found):
                        for place, part in parts:
                            if place not in sums:
                                sums[place] = adding.sums(place)
                            sums[place].take(part)
                    del found
                    if progress is not None:
                        progress((turn + done / shards) / len(turns))
                for place in places:
                    yield place, sums.pop(place).result()


def _job(adding: Adding, folder: Path) -> Job[Task, Parts]:
    files, model = model_as_files(adding.model, None, folder / "model")
    (folder / "data").mkdir()
    data = store(adding.data, folder / "data")
    nodes = tuple((str(linear.node.name), linear.operand) for linear in adding.linears)
    told = (
        files, model, Files.of_folder(folder / "data"), data, nodes, tuple(adding.numbers), adding.batch,
        adding.limit_bytes, adding.course.threads, adding.draw,
    )  # fmt: skip
    return Job(adder, told)


def adder(
    files: Path,
    name: ModelName,
    data: Path,
    stored: StoredData,
    nodes: tuple[tuple[str, int], ...],
    numbers: tuple[int, ...],
    batch: int,
    limit_bytes: int,
    threads: int,
    draw: Draw,
) -> Callable[[Task], Parts]:
    """Return, in a worker, what adds up a shard."""
    model = name.load(files)
    known = {(str(linear.node.name), linear.operand): linear for linear in find_linear(model)[0]}
    linears = [known[node] for node in nodes]
    adding = Adding(model, linears, numbers, stored.read(data), batch, limit_bytes, threads, draw)
    return lambda task: adding.run_shard(*task)


class _Early:
    """Parts of shards that came before their turn, on disk.

    Args:
        folder: for files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._next = 0
        self._waiting: dict[int, Parts] = {}

    def in_order(self, shard: int, parts: Parts) -> Iterator[Parts]:
        """Yield what is due now that the parts of a shard are here."""
        if shard != self._next:
            self._waiting[shard] = [(place, self._put_away(shard, place, part)) for place, part in parts]
            return
        self._next += 1
        yield parts
        while self._next in self._waiting:
            self._next += 1
            yield self._waiting.pop(self._next - 1)

    def _put_away(self, shard: int, place: int, part: Part) -> Part:
        """Write the large arrays of a part, and map them."""
        mapped = []
        for number, block in enumerate(part.seconds):
            file = self._folder / f"early_{shard}_{place}_{number}.npy"
            np.save(file, block)
            mapped.append(np.load(file, mmap_mode="r"))
        return Part(mapped, part.first, part.count, part.columns)
