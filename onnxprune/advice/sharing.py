"""Candidates tried by several: each makes one, times it, and judges it on data.

Making and judging go on side by side; a measurement of time has its machine for itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from onnxprune.advice.accuracy import Accuracy
from onnxprune.advice.candidates import Candidate, Made
from onnxprune.advice.trials import Trial
from onnxprune.data import Dataset
from onnxprune.data_files import StoredData, store
from onnxprune.workers import Died, Files, Job, Workers, hire
from onnxprune.workers.models import ModelName, model_as_files

#: What became of a candidate, and what it costs in accuracy.
Tried = tuple[Trial, "Accuracy | str | None"]

_DIED = "it can't be made: its process died; it may need more memory than there is"


class Tries(Protocol):
    """What tries candidates in a worker."""

    def try_one(self, number: int) -> Tried:
        """Make, time and judge a candidate."""


@dataclass(frozen=True, slots=True)
class Samples:
    """What candidates are made with, and judged on.

    Attributes:
        mending: to repair and calibrate with; None without data.
        judging: others; None without data.
    """

    mending: Dataset | None
    judging: Dataset | None

    def stored(self, folder: Path) -> tuple[Files, tuple[StoredData | None, StoredData | None]]:
        """Write them into an empty folder; return the files, and the rest."""
        stored: list[StoredData | None] = []
        names: list[str] = []
        for name, data in (("mending", self.mending), ("judging", self.judging)):
            if data is None:
                stored.append(None)
                continue
            (folder / name).mkdir(parents=True)
            stored.append(store(data, folder / name))
            names += [f"{name}/{each}" for each in Files.of_folder(folder / name).names]
        return Files(folder, tuple(names)), (stored[0], stored[1])

    @classmethod
    def read(cls, folder: Path, stored: tuple[StoredData | None, StoredData | None]) -> Samples:
        """Return what `stored` wrote."""
        mending, judging = stored
        return cls(
            None if mending is None else mending.read(folder / "mending"),
            None if judging is None else judging.read(folder / "judging"),
        )


def try_elsewhere(
    candidates: Sequence[Candidate],
    model: ir.Model,
    samples: Samples,
    build: Callable[..., Tries],
    told: tuple[Any, ...],
    workers: Workers,
    progress: Callable[[str], None],
) -> list[Tried]:
    """Let others try all candidates; return what they found, in their order.

    Args:
        candidates: what is tried; others make the same list.
        model: the original.
        samples: to repair and judge with.
        build: makes what tries them, from the model, the samples, a folder for files, and ``told``.
        told: small.
        workers: who they are.
        progress: is told how it goes.

    Raises:
        WorkersError: they can't be used.
    """
    found: dict[int, Tried] = {}
    with tempfile.TemporaryDirectory(prefix="onnxprune-advise-") as name:
        folder = Path(name)
        files, model_name = model_as_files(model, None, folder / "model")
        (folder / "samples").mkdir()
        data, stored = samples.stored(folder / "samples")
        job: Job[int, Tried] = Job(
            _rebuilt, (build, files, model_name, data, stored, name, told), same_machine=True
        )
        with hire(workers, job, len(candidates)) as crew:
            progress(f"trying {len(candidates)} candidates")
            for number, tried in crew.run(range(len(candidates))):
                candidate = candidates[number]
                if isinstance(tried, Died):
                    found[number] = Trial(candidate, skipped=_DIED), None
                else:
                    trial, accuracy = tried
                    found[number] = replace(trial, candidate=candidate), accuracy
                progress(f"tried {len(found)} of {len(candidates)}: {candidate.name}")
    return [found[number] for number in range(len(candidates))]


def _rebuilt(
    build: Callable[..., Tries],
    files: Path,
    name: ModelName,
    data: Path,
    stored: tuple[StoredData | None, StoredData | None],
    folder: str,
    told: tuple[Any, ...],
) -> Callable[[int], Tried]:
    here = tempfile.TemporaryDirectory(dir=folder if Path(folder).is_dir() else None)
    tries = build(name.load(files), Samples.read(data, stored), Path(here.name), *told)

    def try_one(number: int) -> Tried:
        _ = here  # for as long as this is known
        trial, accuracy = tries.try_one(number)
        return replace(trial, candidate=replace(trial.candidate, make=_elsewhere)), accuracy

    return try_one


def _elsewhere() -> Made:
    raise ValueError("this candidate was made in another process")
