"""What long benchmarks share: a process for each run, and a file of rows, so that nothing is done twice."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "onnxprune"
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

#: What a run measured, or ``error``, by name.
Row = Mapping[str, Any]


class Named(Protocol):
    """A run: its key and its options say all that decides what comes out."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Plain JSON values."""


class Rows:
    """What has been measured: a file with one JSON line for each run, the last one counts.

    Args:
        path: the file; made when the first row is added.
        source: digest of the package as it is now.
        stale: rows of earlier states of the package count too, where there is none of this one.
    """

    def __init__(self, path: Path, source: str, *, stale: bool = False) -> None:
        self.source = source
        self._path = path
        self._stale = stale
        self._found: dict[str, dict[str, Row]] = {}
        text = path.read_text() if path.exists() else ""
        if text and not text.endswith("\n"):  # interrupted in the middle of a line: what comes goes below it
            path.write_text(text + "\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._remember(entry)

    def find(self, run: Named, files: str) -> Row | None:
        """Return the row of a run on files of this digest, None if there is none that counts."""
        by_source = self._found.get(self._name(run, files), {})
        if self.source in by_source:
            return by_source[self.source]
        return list(by_source.values())[-1] if by_source and self._stale else None

    def add(self, run: Named, files: str, row: Row) -> None:
        """Write a row, at once."""
        entry = {"run": self._name(run, files), "source": self.source, "row": dict(row)}
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self._remember(entry)

    def _remember(self, entry: Mapping[str, Any]) -> None:
        by_source = self._found.setdefault(entry["run"], {})
        by_source.pop(entry["source"], None)  # so that the latest stands last
        by_source[entry["source"]] = {**entry["row"], "source": entry["source"]}

    @staticmethod
    def _name(run: Named, files: str) -> str:
        return json.dumps([run.key, dict(run.options), files], sort_keys=True)


def digest(paths: Iterable[Path]) -> str:
    """Return the start of the SHA-256 of files, by name and content."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        whole.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return whole.hexdigest()[:16]


def in_process(
    script: Path,
    task: Mapping[str, Any],
    timeout_s: float,
    *,
    python: Path | str = sys.executable,
    variables: Mapping[str, str] = ONE_THREAD,
) -> Row:
    """Do a task in a process of its own; whatever happens to it, there is a row.

    Args:
        script: is given the task as JSON, and prints the row as JSON on its last line.
        task: plain JSON values.
        timeout_s: seconds after which it is stopped.
        python: the interpreter.
        variables: of the environment, beside those that are there.
    """
    path = os.pathsep.join((str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])))  # this very package
    environment = {**os.environ, **variables, "PYTHONPATH": path}
    try:
        done = subprocess.run(
            [str(python), str(script), json.dumps(task)],
            capture_output=True, text=True, env=environment, timeout=timeout_s, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"stopped after {timeout_s:.0f} s"}
    return outcome(done.returncode, done.stdout, done.stderr)


def outcome(status: int, output: str, errors: str) -> Row:
    """Return the row that a process wrote last, or how it ended without one."""
    last = (output.splitlines() or [""])[-1]
    if status == 0 and last.startswith("{"):
        row: Row = json.loads(last)
        return row
    if status < 0:
        return {"error": f"the process died of signal {-status}"}
    said = (errors.strip().splitlines() or ["nothing said"])[-1]
    return {"error": f"the process ended with status {status}: {said}"}


def reason(error: Exception, paths: Sequence[str]) -> str:
    """Return the first line of what went wrong, with names of files for their paths."""
    text = (str(error).splitlines() or ["no message"])[0]
    for path in paths:
        text = text.replace(path, Path(path).name)
    return f"{type(error).__name__}: {text}"


def as_json(about: Mapping[str, Any], rows: Iterable[Row]) -> str:
    """Return rows, one in each line, under what is said of how they were made."""
    head = json.dumps(about, indent=1)[:-2]
    return head + ',\n "rows": [\n' + ",\n".join(json.dumps(dict(row)) for row in rows) + "\n]}\n"
