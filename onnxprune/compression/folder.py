"""The folder of a run: what each stage gave, under a key made of everything that it depends on.

::

    run/
      lock                  held while a run works here
      results/KEY/          one for each stage: its files, and done.json with their hashes
      work/KEY/             a stage that is under way, or was broken off: its checkpoints
      cache/                measurements that several stages share: sensitivity, times of parts
      scratch/              temporary files, which are gone when no run works here

A result appears whole or not at all (its folder is renamed once it is complete and on the disk), and is used
only if every byte of it is what was written.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from onnxprune.errors import DataError, OutputError
from onnxprune.messages import visible
from onnxprune.model.atomic import flush_folder, output_errors, write_whole
from onnxprune.model.digest import sha256_of
from onnxprune.reading import contents, parse_json

_DONE = "done.json"
_LARGEST_DONE_BYTES = 256 << 20

#: Packages that results depend on, beside our own code.
PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "scipy")


@dataclass(frozen=True, slots=True)
class Result:
    """What a stage gave.

    Attributes:
        key: of everything that it depends on.
        folder: where its files are.
        about: plain JSON values that the stage put down.
        reused: it had been there.
    """

    key: str
    folder: Path
    about: Mapping[str, Any]
    reused: bool


class RunFolder:
    """The folder of a run, locked.

    Args:
        folder: made if it is missing; its parent must be there.
        resume: let stages that were broken off go on from their checkpoints.
        fresh: believe no earlier result.

    Attributes:
        cache: folder for measurements that several stages share.
        damaged: one line for each earlier result that was not what had been written.
    """

    def __init__(self, folder: Path, *, resume: bool = False, fresh: bool = False) -> None:
        self._folder = folder
        self._resume = resume
        self._fresh = fresh
        self._used: set[str] = set()
        self.cache = folder / "cache"
        self.damaged: list[str] = []

    @contextlib.contextmanager
    def locked(self) -> Iterator[RunFolder]:
        """Hold the folder while the block runs, and forget what it did not use once it ends well.

        Raises:
            OutputError: another run holds it, or it can't be made.
        """
        with output_errors(self._folder):
            if self._folder.exists() and not (self._folder / "lock").exists() and any(self._folder.iterdir()):
                raise OutputError(
                    f"{visible(self._folder)}: is no folder of a run and is not empty; name another one"
                )
            self._folder.mkdir(exist_ok=True)
            lock = filelock.FileLock(self._folder / "lock")
            try:
                lock.acquire(blocking=False)
            except NotImplementedError:
                raise OutputError(
                    f"{visible(self._folder)}: its file system has no locks; name a run.folder elsewhere"
                ) from None
            except filelock.Timeout:
                raise OutputError(
                    f"{visible(self._folder)}: another run uses it; wait for it, or name another run.folder"
                ) from None
        try:
            for part in ("results", "work", "cache"):
                with output_errors(self._folder):
                    (self._folder / part).mkdir(exist_ok=True)
            with _temporary_files_in(self._folder / "scratch"):
                yield self
            self._forget_unused()
        finally:
            lock.release()

    def result(self, depends_on: Mapping[str, Any], make: Callable[[Work], Mapping[str, Any]]) -> Result:
        """Return the result of a stage: an earlier one, or what is made now.

        Args:
            depends_on: plain JSON values: everything that the result depends on but our code and libraries.
            make: writes files into the place of the work, and returns plain JSON values about them.

        Raises:
            OutputError: the folder can't be written.
        """
        key = _key(depends_on)
        self._used.add(key)
        earlier = None if self._fresh else self._earlier(key)
        if earlier is not None:
            return earlier
        work = Work(self._folder, key, resumed=self._resume)
        work.begin()
        return work.finish(make(work))

    def find(self, depends_on: Mapping[str, Any]) -> Result | None:
        """Return an earlier result, None if there is no sound one. Changes nothing, needs no lock."""
        key = _key(depends_on)
        folder = self._folder / "results" / key
        about = None if self._fresh else read_done(folder, key)
        return None if about is None else Result(key, folder, about, reused=True)

    def _earlier(self, key: str) -> Result | None:
        folder = self._folder / "results" / key
        if not folder.exists():
            return None
        about = read_done(folder, key)
        if about is None:
            self.damaged.append(f"{visible(folder)}: is damaged, so this stage runs again")
            with output_errors(folder):
                shutil.rmtree(folder)
            return None
        return Result(key, folder, about, reused=True)

    def _forget_unused(self) -> None:
        """Keep what the last run needed, so that the folder does not grow from run to run."""
        for part in ("results", "work"):
            for folder in (self._folder / part).iterdir():
                if folder.name not in self._used:
                    with output_errors(folder):
                        shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """Let temporary files of this process, and of those that it starts, lie in a folder for a while.

    So nothing is written elsewhere, and what a killed run leaves is removed by the next one.
    """
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    with output_errors(folder):
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder.resolve())
    try:
        yield
    finally:
        tempfile.tempdir = before
        os.environ.pop("TMPDIR")
        os.environ |= {} if variable is None else {"TMPDIR": variable}
        shutil.rmtree(folder, ignore_errors=True)  # of no use, and the next run removes what is left


class Work:
    """One stage while its result comes about.

    Attributes:
        place: folder to write files into, and to keep checkpoints in under ``checkpoint``.
        resumed: checkpoints that are there may be used.
    """

    def __init__(self, run: Path, key: str, *, resumed: bool) -> None:
        self.place = run / "work" / key
        self.resumed = resumed
        self._key = key
        self._target = run / "results" / key

    @property
    def checkpoint(self) -> Path:
        """Folder for the state of long work within the stage."""
        return self.place / "checkpoint"

    def begin(self) -> None:
        """Make the place empty, but for checkpoints that may be used."""
        with output_errors(self.place):
            if self.place.exists():
                for entry in self.place.iterdir():
                    if entry != self.checkpoint or not self.resumed:
                        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self.place.mkdir(exist_ok=True)

    def finish(self, about: Mapping[str, Any]) -> Result:
        """Make what is in the place the result, with plain JSON values about it."""
        with output_errors(self.place):
            if self.checkpoint.exists():
                shutil.rmtree(self.checkpoint)
            files = {str(path.relative_to(self.place)): sha256_of(path) for path in _files(self.place)}
            done = {"key": self._key, "files": files, "about": dict(about)}
            done["check"] = key_of(done)
            write_whole(self.place / _DONE, (json.dumps(done) + "\n").encode())
            for folder in {path.parent for path in _files(self.place)}:
                flush_folder(folder)
            if self._target.exists():  # --fresh made it anew
                shutil.rmtree(self._target)
            os.replace(self.place, self._target)  # noqa: PTH105 (the name says what happens)
            flush_folder(self._target.parent)
        return Result(self._key, self._target, about, reused=False)


def read_done(folder: Path, key: str) -> dict[str, Any] | None:
    """Return what a stage put down, None unless it and all files are exactly what was written."""
    try:
        done = parse_json(contents(folder / _DONE, DataError, _LARGEST_DONE_BYTES, "is too large"))
        if done.pop("check") != key_of(done) or done["key"] != key:
            return None
        found = {str(path.relative_to(folder)) for path in _files(folder)} - {_DONE}
        if found != set(done["files"]):
            return None
        if any(sha256_of(folder / name) != digest for name, digest in done["files"].items()):
            return None
        about: dict[str, Any] = done["about"]
    except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # whatever is wrong with it: it is not what was written
    return about


def key_of(values: Mapping[str, Any]) -> str:
    """Return the hash of plain JSON values: 32 hexadecimal digits of their SHA-256."""
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _key(depends_on: Mapping[str, Any]) -> str:
    return key_of({**depends_on, "tool": tool_digest()})


@functools.cache
def tool_digest() -> str:
    """Return the hash of our own code, and of the versions that results depend on."""
    versions = {name: metadata.version(name) for name in PACKAGES}
    return key_of({"sources": sources_of(Path(__file__).resolve().parents[1]), "versions": versions})


def sources_of(package: Path) -> dict[str, str]:
    """Return the hash of every module of a package, by its path."""
    return {str(path.relative_to(package)): sha256_of(path) for path in sorted(package.rglob("*.py"))}


def _files(folder: Path) -> list[Path]:
    """Return the files below a folder. Links are none: what they lead to is not what a stage wrote."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
