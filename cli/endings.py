"""How a command ends: its exit status, and the one line that says why."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TextIO

import click

from onnxprune.containment import Ended, told
from onnxprune.errors import (
    LimitMissed,
    MissingExtra,
    NothingToPrune,
    OnnxPruneError,
    OutputError,
    RuntimeFailure,
    UsageError,
)
from onnxprune.messages import harmless_json, one_line, visible

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM
NO_READER = 141  # 128 + SIGPIPE

_STOPPING = (signal.SIGINT, signal.SIGTERM)
#: Begins a message that says first which file it is about.
_PATH = re.compile(r"^[^:]*[/\\.][^: ]*: ")

_AGAIN_SECONDS = 0.01
_LONGEST_MESSAGE = 1000


class Terminated(BaseException):
    """Somebody sent SIGTERM. Not an `Exception`: only what cleans up may see it pass."""


@dataclass(slots=True)
class Ending:
    """The end of one command line.

    Attributes:
        as_json: an error is a JSON document on stdout as well.
        context: of the group, once its options were read.
        status: the exit status.
        stopped: what a signal raised, whatever became of it on its way here.
    """

    as_json: bool
    context: click.Context | None = None
    status: int = 0
    stopped: BaseException | None = None

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turn whatever ends the block into a status and, where it is an error, one line."""
        main_thread = threading.current_thread() is threading.main_thread()  # no other may set handlers
        before = {number: signal.signal(number, self._stop) for number in _STOPPING if main_thread}
        try:
            try:
                yield
                sys.stdout.flush()
            finally:
                if main_thread:
                    _ignore_signals()
        except click.exceptions.Exit as ending:
            self.status = ending.exit_code
        except BrokenPipeError:
            self.status = NO_READER
            discard(sys.stdout)
        except BaseException as error:  # noqa: BLE001 # the last stop: everything becomes a status here
            self.status = self.fail(error if self.stopped is None else self.stopped)
            try:
                sys.stdout.flush()
            except OSError:  # what failed just now would fail again when the interpreter ends
                discard(sys.stdout)
        finally:
            if not told.is_heard():  # a worker has nothing left to do but to end
                for number, handler in before.items():
                    signal.signal(number, handler)
                sys.unraisablehook = sys.__unraisablehook__
            told.ends(self.status)

    @property
    def _command(self) -> str | None:
        return None if self.context is None else self.context.invoked_subcommand

    def fail(self, error: BaseException) -> int:
        """Say what went wrong; return the exit status that it means."""
        status, message = describe(error, self._command)
        debug = self.context is not None and self.context.params.get("debug")
        if debug:
            traceback.print_exception(error)
        if message is None:
            kind = "internal error, please report it" + ("" if debug else " with what --debug shows")
            message = _with_subject(f"{kind}: {type(error).__name__}: {error}")
        elif isinstance(error, OnnxPruneError) and not isinstance(error, (MissingExtra, OutputError)):
            message = _with_subject(message)
        line = one_line(message, _LONGEST_MESSAGE)
        with contextlib.suppress(OSError):  # if stdout is what failed, stderr still says so
            if self.as_json:
                click.echo(harmless_json(json.dumps(self._document(error, status, line), indent=1)))
        click.echo(f"error: {line}", err=True)
        return status

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """End the command like an exception does, so that what cleans up does its work.

        The first signal counts: a terminal tells a whole group of processes, then our supervisor tells us.
        """
        _ignore_signals()
        self.stopped = KeyboardInterrupt() if number == signal.SIGINT else Terminated()
        sys.unraisablehook = self._insist
        raise self.stopped

    def _insist(self, lost: sys.UnraisableHookArgs) -> None:
        """Raise it again soon, if it came up where exceptions are lost: in finalizers, in callbacks."""
        if lost.exc_value is not self.stopped:
            sys.__unraisablehook__(lost)
            return

        def again(_number: int, _frame: FrameType | None) -> None:
            raise self.stopped or KeyboardInterrupt

        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)

    def _document(self, error: BaseException, status: int, message: str) -> dict[str, Any]:
        reasons = list(error.reasons) if isinstance(error, (LimitMissed, NothingToPrune)) else []
        kind = "UsageError" if isinstance(error, click.UsageError) else type(error).__name__
        details: dict[str, Any] = {
            "type": kind, "message": message, "exit_status": status, "reasons": reasons
        }  # fmt: skip
        if isinstance(error, LimitMissed) and error.reached is not None:
            details["reached"] = error.reached
        return {"schema": 1, "command": self._command, "error": details}


def describe(error: BaseException, command: str | None) -> tuple[int, str | None]:
    """Return the exit status that an exception means, and its message; no message if it is a bug of ours."""
    if isinstance(error, UsageError):
        return error.exit_status, f"{error} (see onnxprune {command} --help)"
    if isinstance(error, OnnxPruneError):
        return error.exit_status, str(error)
    if isinstance(error, click.UsageError):
        path = "onnxprune" if error.ctx is None else error.ctx.command_path
        return 2, f"{error.format_message().rstrip('.')} (see {path} --help)"
    if isinstance(error, click.ClickException):
        return error.exit_code, error.format_message()
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, "interrupted; nothing was left half written"
    if isinstance(error, Terminated):
        return TERMINATED, "terminated; nothing was left half written"
    if isinstance(error, MemoryError):
        where = f"{visible(told.current_subject())}: " if told.current_subject() else ""
        return 1, f"{where}out of memory; close other programs, or allow more with --memory"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return 1, f"{where}{error.strerror or error}"
    return 1, None


def _with_subject(message: str) -> str:
    """Say in a message which file the command is about: first, or last where another file stands first."""
    subject = visible(told.current_subject())
    if not subject or subject in message:
        return message
    return f"{message} (for {subject})" if _PATH.search(message) else f"{subject}: {message}"


def after(ended: Ended, arguments: Sequence[str]) -> int:
    """Return the exit status for how a worker ended, after saying what it could not say itself."""
    for line in ended.noise.splitlines():
        click.echo(visible(line, _LONGEST_MESSAGE), err=True)
    if ended.status is not None:
        return ended.status
    ending = Ending(as_json="--json" in arguments)
    if ended.signal is not None:
        return ending.fail(KeyboardInterrupt() if ended.signal == signal.SIGINT else Terminated())
    named = ended.subject or next(filter(os.path.isfile, arguments), "")
    where = f"{visible(named)}: " if named else ""
    at = f" (at: {visible(ended.step)})" if ended.step else ""
    if ended.timed_out:
        return ending.fail(LimitMissed(f"{where}took longer than --timeout allows{at}"))
    return ending.fail(RuntimeFailure(f"{where}{ended.why}{at}"))


def open_standard_streams() -> None:
    """Make sure that descriptors 0 to 2 are taken, and that no name makes printing fail.

    Where one of them is closed, the next file that is opened would get its number, and our output with it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    for name, mode in (("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 # until the end
        else:
            stream.reconfigure(errors="backslashreplace")


def _ignore_signals() -> None:
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)


def discard(stream: TextIO) -> None:
    """Point a stream at nothing, so that the interpreter's last flush does not fail like ours did."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor has nothing to point
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, stream.fileno())
        os.close(descriptor)
