"""The process that a user starts: it lets a worker do everything, and outlives it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from onnxprune.containment.crashes import describe_crash
from onnxprune.containment.placing import Placed, take_back
from onnxprune.containment.temporary import alive, remove_of
from onnxprune.containment.worker import FORWARDED, become_worker

#: Seconds that a worker has to clear up after SIGINT or SIGTERM, before it is killed.
GRACE_SECONDS = 3.0

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)
_POLL_SECONDS = 0.05
_NOISE_BYTES = 1 << 14
_READ_BYTES = 1 << 16
_SCRATCH_PREFIX = "onnxprune-scratch-"
_CHILDREN = Path("/proc/thread-self/children")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended.

    Attributes:
        status: its exit status; None if it did not get to have one.
        signal: of SIGINT and SIGTERM, the one that somebody sent.
        why: half a sentence on why it has no status; empty if it was interrupted.
        timed_out: it took more time than was allowed.
        subject: the file that the command is about, as far as it said so.
        step: what was being done.
        noise: the end of what native libraries printed, if that shall be shown.
    """

    status: int | None
    signal: int | None = None
    why: str = ""
    timed_out: bool = False
    subject: str = ""
    step: str = ""
    noise: str = ""


def supervise(work: Callable[[], int]) -> Ended:
    """Do some work in a forked process, which ends with the status that ``work`` returns.

    To be called before anything starts a thread. It returns twice: in the worker, once the work is done, and
    in the supervisor, once what the worker left behind is gone: processes, temporary files beside outputs,
    its scratch folder. SIGINT and SIGTERM are blocked in the worker until it is ready for them. On systems
    without ``fork`` the work is done here, and a crash is a crash.

    Raises:
        OSError: there are too few descriptors or processes.
    """
    if not hasattr(os, "fork"):
        return Ended(work())
    _adopt_orphans()
    pipes = _Pipes()
    scratch = _scratch_folder()
    watch = _Watch(scratch)
    parent = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    try:
        watch.worker = os.fork()
    except OSError:
        watch.clear()
        raise
    if watch.worker == 0:
        pipes.keep_writing()
        become_worker(parent, pipes.told_to, pipes.noise_to, scratch)
        return Ended(work())
    try:
        watch.listen()
        pipes.keep_reading()
        ended = watch.wait(pipes)
    finally:
        _end_children()
        watch.clear()
    return ended


class _Pipes:
    """The two ways from a worker to its supervisor: what it tells, and what native libraries print."""

    def __init__(self) -> None:
        self.told_from, self.told_to = os.pipe()
        try:
            self.noise_from, self.noise_to = os.pipe()
        except OSError:
            os.close(self.told_from)
            os.close(self.told_to)
            raise

    def keep_writing(self) -> None:
        """Close what a worker does not need."""
        os.close(self.told_from)
        os.close(self.noise_from)

    def keep_reading(self) -> None:
        """Close what a supervisor does not need."""
        os.close(self.told_to)
        os.close(self.noise_to)


class _Watch:
    """What the supervisor knows of its worker."""

    def __init__(self, scratch: Path | None) -> None:
        self.worker = 0
        self._scratch = scratch
        self._started = time.monotonic()
        self._sent: int | None = None
        self._kill_at = float("inf")
        self._timed_out = False
        self._told = {"subject": "", "step": ""}
        self._folders: set[Path] = set()
        self._status: int | None = None
        self._placed: dict[int, list[Placed]] = {}
        self._unread = b""
        self._noise = b""
        self._shows_noise = False

    def listen(self) -> None:
        """Pass SIGINT and SIGTERM on from now on."""
        for number in FORWARDED:
            signal.signal(number, self._forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        again = self._sent is not None
        self._sent = self._sent or number
        self._kill_at = min(self._kill_at, time.monotonic() + (0 if again else GRACE_SECONDS))
        if not again:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.worker, number)

    def wait(self, pipes: _Pipes) -> Ended:
        """Read what the worker says until it ends."""
        open_pipes = {pipes.told_from: self._hear, pipes.noise_from: self._overhear}
        while True:
            ready, _, _ = select.select(list(open_pipes), [], [], _POLL_SECONDS)
            for descriptor in ready:
                read = os.read(descriptor, _READ_BYTES)
                if read:
                    open_pipes[descriptor](read)
                else:
                    del open_pipes[descriptor]
            # with nothing left to read it is about to end, or its children hold the pipes
            process, status = os.waitpid(self.worker, 0 if not open_pipes else os.WNOHANG)
            if process:
                self._read_rest(open_pipes)
                return self._ended(os.waitstatus_to_exitcode(status))
            if time.monotonic() >= self._kill_at:
                self._timed_out = self._sent is None
                os.kill(self.worker, signal.SIGKILL)
                self._kill_at = float("inf")

    def _read_rest(self, open_pipes: Mapping[int, Callable[[bytes], None]]) -> None:
        """Read what the worker wrote right before it ended; its children may still hold the pipes."""
        for descriptor, take in open_pipes.items():
            while select.select([descriptor], [], [], 0)[0] and (read := os.read(descriptor, _READ_BYTES)):
                take(read)

    def _hear(self, read: bytes) -> None:
        *lines, self._unread = (self._unread + read).split(b"\n")
        for line in lines:
            kind, text = json.loads(line)
            if kind in self._told:
                self._told[kind] = text
            elif kind == "folder":
                self._folders.add(Path(text))
            elif kind == "places":
                group, placed = json.loads(text)
                self._placed.setdefault(group, []).append(Placed(*placed))
            elif kind == "ends":
                self._status = json.loads(text)
            elif kind == "settled":
                self._placed.pop(json.loads(text), None)
            elif kind == "timeout":
                self._kill_at = min(self._kill_at, self._started + float(text))
            elif kind == "noise":
                self._shows_noise = True

    def _overhear(self, read: bytes) -> None:
        self._noise = (self._noise + read)[-_NOISE_BYTES:]

    def _ended(self, code: int) -> Ended:
        printed = self._noise.decode("utf-8", "replace")
        stopped = self._sent is not None or self._timed_out
        # libraries that take long to end, or crash then, change nothing about what was done and said before
        ended = code if code >= 0 else self._status
        return Ended(
            status=ended,
            signal=self._sent,
            why="" if ended is not None or stopped else describe_crash(-code, printed),
            timed_out=self._timed_out,
            noise=printed if self._shows_noise else "",
            **self._told,
        )

    def clear(self) -> None:
        """Take back what the worker, which is gone, was about to do; remove its temporary files."""
        for group in self._placed.values():
            take_back(group)
        for folder in self._folders:
            remove_of(folder, self.worker)
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)


def _adopt_orphans() -> None:
    """Become the parent of what the worker starts and leaves behind (Linux), so that it can be ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def _end_children() -> None:
    """Kill whatever process is left of those that this one and its worker started."""
    deadline = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < deadline:
        for child in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return  # there is none
        time.sleep(_POLL_SECONDS / 10)


def _children() -> list[int]:
    try:
        return [int(number) for number in _CHILDREN.read_text(encoding="ascii").split()]
    except OSError:
        return []  # not Linux: there the worker itself is the only child, and was waited for


def _scratch_folder() -> Path | None:
    """Return a new folder for temporary files, None where there can't be one; clear away abandoned ones."""
    name = f"{_SCRATCH_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
    try:
        root = Path(tempfile.gettempdir())
        for abandoned in root.glob(f"{_SCRATCH_PREFIX}*-*"):
            number = abandoned.name.removeprefix(_SCRATCH_PREFIX).partition("-")[0]
            if number.isdecimal() and not alive(int(number)) and abandoned.stat().st_uid == os.getuid():
                shutil.rmtree(abandoned, ignore_errors=True)
        folder = root / name
        folder.mkdir(mode=0o700)
    except OSError:
        return None  # the worker says so, if it needs one
    return folder
