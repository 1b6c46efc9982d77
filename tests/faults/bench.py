"""Disturbs tasks at every point, and says what does not hold afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

#: Temporary names, which only a process that was killed may leave.
TEMPORARY = re.compile(r"(^|/)\.[^/]*\.onnxprune-tmp(/|$)")

#: Ways to change an input meanwhile.
CHANGES = ("truncate", "swap", "overwrite", "delete")

State = dict[str, bytes]


def state(folder: Path) -> State:
    """Return the contents of all files below a folder, by path."""
    found = (path for path in sorted(folder.rglob("*")) if path.is_file() or path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@dataclass(frozen=True)
class Answer:
    """How a task ended.

    Attributes:
        status: of its process; negative: the signal.
        lines: on stderr.
        operations: on the file system, unless it was killed.
    """

    status: int
    lines: Sequence[str]
    operations: Sequence[str]

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Bench:
    """Folders to work in, and a server that works in them.

    Args:
        root: for all folders.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inputs = root / "inputs"
        self._count = 0
        path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "server.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    def close(self) -> None:
        """End the server."""
        self._server.communicate()

    def folder(self, before: State) -> Path:
        """Return a new folder with inputs, and with something in the place of outputs."""
        self._count += 1
        folder = self.root / f"work{self._count}"
        shutil.copytree(self.inputs, folder / "in")
        (folder / "out").mkdir()
        for name, contents in before.items():
            (folder / "out" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "out" / name).write_bytes(contents)
        return folder

    def do(
        self, task: str, folder: Path, at: int = 0, way: str = "count", arguments: Sequence[str] = ()
    ) -> Answer:
        """Do a task in a folder; at its n-th operation below ``out/``, something happens."""
        log = folder.with_name(f"{folder.name}.log")
        log.mkdir(exist_ok=True)
        (log / "operations.json").unlink(missing_ok=True)
        request = {"task": task, "folder": str(folder), "at": at, "way": way, "log": str(log),
                   "arguments": list(arguments)}  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        lines = [line for line in answer["stderr"].splitlines() if line.strip()]
        return Answer(answer["status"], lines, answer["operations"] or ())


@dataclass
class Trial:
    """One task on a bench.

    Attributes:
        bench: where.
        task: its name.
        arguments: of it.
        kept: it goes on with what an earlier run left; else all of it appears together.
        commit: the file that comes last: who has it has all the others.
    state_of: what counts of the folder of outputs.
    """

    bench: Bench
    task: str
    arguments: Sequence[str] = ()
    kept: bool = False
    commit: str | None = "model.onnx"
    state_of: Callable[[Path], State] = state

    def __post_init__(self) -> None:
        folder = self.bench.folder({})
        answer = self.do(folder)
        assert answer.status == 0, answer.lines
        self.operations = answer.operations
        self.new = self.state_of(folder / "out")
        self.old = {} if self.kept else {name: b"old " + name.encode() for name in self.new}
        # a data file has the name of its contents: what has that name and other contents is in the way
        self.old = {name: contents for name, contents in self.old.items() if not name.endswith(".data")}
        if self.task == "folder":  # nothing may have its name, but a plan may be there
            self.old = {name: self.old[name] for name in self.new if name.startswith("a.plan")}
        shutil.rmtree(folder)

    def do(self, folder: Path, at: int = 0, way: str = "count") -> Answer:
        """Do the task."""
        return self.bench.do(self.task, folder, at, way, self.arguments)

    def operations_over(self, before: State) -> Sequence[str]:
        """Return the operations that the task does where something is there."""
        folder = self.bench.folder(before)
        answer = self.do(folder)
        assert answer.status == 0, answer.lines
        assert self.state_of(folder / "out") == {**self.old_data(before), **self.new}
        shutil.rmtree(folder)
        return answer.operations

    def old_data(self, before: State) -> State:
        """Return what of an old result stays beside a new one: nothing but other files."""
        return {name: contents for name, contents in before.items() if name not in self.new}

    def violations(self, at: int, way: str, before: State) -> list[str]:
        """Disturb the task at a point; return what does not hold."""
        folder = self.bench.folder(before)
        answer = self.do(folder, at, way)
        now = self.state_of(folder / "out")
        bad = []
        if way not in CHANGES and state(folder / "in") != state(self.bench.inputs):
            bad.append("an input has changed")
        if answer.killed:
            bad += self._after_kill(now, before)
        elif answer.status == 0:
            bad += (
                []
                if now == {**before, **self.new}
                else ["it ended well, and the output is not what it should be"]
            )
        elif answer.status == 1:
            bad += [] if len(answer.lines) == 1 else [f"{len(answer.lines)} lines: {answer.lines[-1:]}"]
            bad += self._after_error(now, before, way)
        else:
            bad.append(f"status {answer.status}: {answer.lines[-1:]}")
        if way in CHANGES or (self.task == "folder" and self.commit in now):
            shutil.rmtree(folder)
            return bad  # there is no clean run of another input, or into a folder that is there
        again = self.do(folder)
        if again.status != 0:
            bad.append(f"a clean run afterwards ends with {again.status}: {again.lines}")
        elif self.state_of(folder / "out") != {**before, **self.new}:
            bad.append(f"a clean run afterwards leaves {sorted(state(folder / 'out'))}")
        shutil.rmtree(folder)
        return bad

    def _after_error(self, now: State, before: State, way: str) -> list[str]:
        if any(TEMPORARY.search(name) for name in now):
            return [f"it left {sorted(now)}"]
        if self.kept or now == before:
            return []
        if way == "full":  # a disk that takes nothing at all keeps what can't be taken back, whole
            return self._after_kill(now, before)
        return [f"it failed, and left {sorted(now)}"]

    def _after_kill(self, now: State, before: State) -> list[str]:
        named = {name: contents for name, contents in now.items() if not TEMPORARY.search(name)}
        if self.kept:
            return []  # whether it is believed is seen in the next run
        bad = [
            f"{name} is neither the old nor the new one"
            for name, contents in named.items()
            if contents not in (before.get(name), self.new.get(name))
        ]
        bad += [f"{name} is lost" for name in before if name not in named]
        committed = self.commit is not None and named.get(self.commit) == self.new.get(self.commit)
        if committed and self.commit in self.new:
            bad += [f"{self.commit} is there without {name}" for name in self.new if name not in named]
        return bad
