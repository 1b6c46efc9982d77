"""What a process does to itself before it touches a model that nobody vouches for."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from onnxprune import machine
from onnxprune.containment import told
from onnxprune.containment.landlock import restrict

#: Signals that the supervisor passes on; a worker blocks them until it calls `take_signals`.
FORWARDED = (signal.SIGINT, signal.SIGTERM)

_PR_SET_PDEATHSIG = 1  # prctl(2)
_MANY_PROCESSES = "MASTER_ADDR"  # torchrun sets it: the processes of one training talk by TCP


def die_with_parent() -> None:
    """Let the system end this process once the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def leave_no_core() -> None:
    """Write no core file if this process crashes: it would hold the user's weights and data."""
    if os.name == "posix":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def limit_memory(size_bytes: int) -> None:
    """Let allocations beyond so many bytes fail in this process and those that it starts, each by itself.

    Files that are mapped into memory do not count. Where there was a lower limit, that stays.
    """
    if os.name != "posix":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    with contextlib.suppress(ValueError, OSError):  # a system that knows no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def keep_limits(*, timeout_seconds: float | None, memory_bytes: int | None, show_noise: bool) -> None:
    """In a worker, keep limits from now on; elsewhere there is nobody who could.

    Args:
        timeout_seconds: since the start, after which the supervisor ends the worker; None for no limit.
        memory_bytes: as of `limit_memory`; None for what the machine has.
        show_noise: let the supervisor print what native libraries printed.
    """
    if not told.is_heard():
        return
    if timeout_seconds is not None:
        told.limit_time(timeout_seconds)
    if show_noise:
        told.show_noise()
    limit = machine.memory_bytes() if memory_bytes is None else memory_bytes
    if limit is not None:
        limit_memory(limit)


def confine(writable: Iterable[Path], *, network: bool = False) -> None:
    """In a worker, give up writing outside some folders, and TCP, if the system can take that away.

    Not to be called where the user's own code will run: that may do what it likes.

    Args:
        writable: the folders that outputs lie in, and those for temporary files.
        network: keep TCP.
    """
    if told.is_heard():
        restrict([*writable, Path(tempfile.gettempdir())], network=network or _MANY_PROCESSES in os.environ)


def become_worker(parent: int, told_to: int, noise: int, scratch: Path | None) -> None:
    """Turn this process, forked from ``parent``, into its worker.

    Args:
        parent: its number.
        told_to: the pipe that `told` writes to.
        noise: the pipe that becomes descriptor 2: what native libraries print there is not for the user.
            ``sys.stderr`` still is the standard error of the parent.
        scratch: the folder for temporary files; None for the system's.
    """
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)  # it died before it could be asked to be waited for
    leave_no_core()
    if hasattr(signal, "SIGXFSZ"):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing too much is an error like a full disk
    told.tell_through(told_to)
    stderr = open(os.dup(2), "w", encoding=sys.stderr.encoding, errors="backslashreplace", buffering=1)  # noqa: PTH123, SIM115 # until the end
    sys.stderr = stderr
    os.dup2(noise, 2)
    os.close(noise)
    if scratch is not None:
        tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)


def take_signals() -> None:
    """Let SIGINT and SIGTERM come, which a worker keeps waiting until then."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
