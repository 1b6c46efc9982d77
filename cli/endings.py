"""How a command ends: its exit status, and the one line that says why."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import click

from onnxprune.errors import LimitMissed, NothingToPrune, OnnxPruneError, UsageError
from onnxprune.messages import one_line

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM
NO_READER = 141  # 128 + SIGPIPE

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
    """

    as_json: bool
    context: click.Context | None = None
    status: int = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Turn whatever ends the block into a status and, where it is an error, one line."""
        try:
            with _terminated_by_signal():
                yield
                sys.stdout.flush()
        except click.exceptions.Exit as ending:
            self.status = ending.exit_code
        except BrokenPipeError:
            self.status = NO_READER
            _discard_stdout()
        except BaseException as error:  # noqa: BLE001 # the last stop: everything becomes a status here
            self.status = self._fail(error)
            try:
                sys.stdout.flush()
            except OSError:  # what failed just now would fail again when the interpreter ends
                _discard_stdout()

    @property
    def _command(self) -> str | None:
        return None if self.context is None else self.context.invoked_subcommand

    def _fail(self, error: BaseException) -> int:
        status, message = describe(error, self._command)
        if message is None:
            traceback.print_exception(error)
            message = f"internal error, please report it: {type(error).__name__}: {error}"
        elif self.context is not None and self.context.params.get("debug"):
            traceback.print_exception(error)
        line = one_line(message, _LONGEST_MESSAGE)
        with contextlib.suppress(OSError):  # if stdout is what failed, stderr still says so
            if self.as_json:
                click.echo(json.dumps(self._document(error, status, line), indent=1))
        click.echo(f"error: {line}", err=True)
        return status

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
        return 1, "out of memory; close other programs, or keep the weights in external data"
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return 1, f"{where}{error.strerror or error}"
    return 1, None


@contextlib.contextmanager
def _terminated_by_signal() -> Iterator[None]:
    """Let SIGTERM end the block like an exception, so that temporary files go and children end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


def _discard_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail like ours did."""
    with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor has nothing to point
        descriptor = os.open(os.devnull, os.O_WRONLY)
        os.dup2(descriptor, sys.stdout.fileno())
        os.close(descriptor)
