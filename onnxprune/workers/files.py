"""Files that tasks read: where they are on this machine, and what identifies them on another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from onnxprune.errors import WorkersError
from onnxprune.messages import visible
from onnxprune.model.digest import sha256_of


class Entry(NamedTuple):
    """One file of a shipment.

    Attributes:
        name: relative to the folder of the shipment, with ``/``.
        size: in bytes.
        digest: SHA-256 of the contents, in hexadecimal.
    """

    name: str
    size: int
    digest: str


class Shipment(NamedTuple):
    """What stands for some files in what is sent to a worker.

    Attributes:
        digest: SHA-256 of names and contents, in hexadecimal.
        entries: the files.
    """

    digest: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Files:
    """Files below a folder. Among the arguments of a job, it becomes the path of a folder that holds them.

    Attributes:
        folder: on this machine.
        names: relative to it, with ``/``; nothing else in it travels.
    """

    folder: Path
    names: tuple[str, ...]

    @classmethod
    def of_folder(cls, folder: Path) -> Files:
        """Return all files directly in a folder."""
        return cls(folder, tuple(sorted(file.name for file in folder.iterdir() if file.is_file())))

    def shipment(self) -> Shipment:
        """Read all files, and return what identifies them.

        Raises:
            WorkersError: one can't be read, or has a name that leads out of the folder.
        """
        entries = []
        for name in self.names:
            check_name(name)
            path = self.folder / name
            try:
                entries.append(Entry(name, path.stat().st_size, sha256_of(path)))
            except OSError as error:
                raise WorkersError(f"{visible(path)}: can't be read: {error.strerror}") from error
        digest = hashlib.sha256(repr(entries).encode()).hexdigest()
        return Shipment(digest, tuple(entries))


def check_name(name: str) -> None:
    """Make sure that a name leads to a file below its folder, whichever system reads it.

    Raises:
        WorkersError: it may not.
    """
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or any(sign in name for sign in ("\\", ":", "\0")):
        raise WorkersError(f"{visible(name)}: a file of this name can't be sent to workers; rename it")
