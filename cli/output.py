"""What a command prints: tables for people, or one JSON document for programs."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from onnxprune.containment import confine, told
from onnxprune.errors import LimitMissed, NothingToPrune, OutputError
from onnxprune.messages import one_line
from onnxprune.user_code import is_reference
from onnxprune_cli.apart import check_apart
from onnxprune_cli.endings import discard
from onnxprune_cli.progress import Progress

if TYPE_CHECKING:
    from onnxprune.types import Report

_Command = TypeVar("_Command", bound=Callable[..., Any])
_LONGEST_FAILURE = 480
_WIDTH_WITHOUT_TERMINAL = 100
_WRITING = ("import", "prune", "apply", "finetune", "quantize", "compress")
_TRUSTING = ("trust_input_code", "trust_code")

#: What commands do to models, where that is not pruning.
_DONE = {"quantize": "quantized"}


@dataclass(slots=True)
class Output:
    """Where the results of one command go.

    Attributes:
        command: its name.
        stream: the real stdout; while a command runs, ``sys.stdout`` is stderr, whoever prints.
        as_json: print one JSON document and nothing else.
        quiet: print nothing but errors (and JSON, if asked for).
        verbose: leave nothing out.
        progress: of long work.
        wrote: what is printed tells of files that are written by then.
    """

    command: str
    stream: TextIO
    as_json: bool
    quiet: bool
    verbose: bool
    progress: Progress
    wrote: bool = False

    def step(self, text: str) -> None:
        """Say what is being done."""
        self.progress.step(text)

    def tell(self, text: str) -> None:
        """Say on stderr what the user has to know before the result."""
        if not self.quiet:
            self.progress.close()
            click.echo(f"note: {one_line(text)}", err=True)

    def show(self, report: Report, *, title: str | None = None, **sections: Any) -> None:
        """Print a report, under another title and with more sections if any are given."""
        self.progress.close()
        report = replace(report, title=title or report.title, sections={**report.sections, **sections})
        if self.as_json:
            from onnxprune.report.as_json import document, to_text

            self._write(to_text(document(self.command, metadata.version("onnxprune"), report)) + "\n")
        elif not self.quiet:
            self._show_tables(report)

    def print(self, text: str) -> None:
        """Print a text as it is, unless nothing is to be printed."""
        self.progress.close()
        if not self.quiet:
            self._write(text)

    def list_reasons(self, error: LimitMissed | NothingToPrune) -> None:
        """Print why not more could be pruned, unless the error itself becomes the JSON document."""
        from onnxprune.types import Report, Skipped

        if not self.as_json and error.reasons:
            pairs = [reason.partition(": ") for reason in error.reasons]
            if isinstance(error, NothingToPrune):  # many for one reason
                skipped = tuple(Skipped(name, reason) for name, _, reason in pairs)
                self.show(Report(f"nothing could be {_DONE.get(self.command, 'pruned')}", skipped=skipped))
            else:  # each holds a share of its own
                rows = [{"where": name, "what": reason} for name, _, reason in pairs]
                self.show(Report("the target is missed", {"what is in the way": rows}))

    def fail(self, message: str, *, status: int) -> NoReturn:
        """End the command with a status, after its results were shown."""
        click.echo(f"error: {one_line(message, _LONGEST_FAILURE)}", err=True)
        raise click.exceptions.Exit(status)

    def _show_tables(self, report: Report) -> None:
        from onnxprune.report.table import plain_text, render

        hint = " (--verbose or --json shows them)"
        if not self.stream.isatty():
            self._write(plain_text(report, width=_WIDTH_WITHOUT_TERMINAL, verbose=self.verbose, hint=hint))
            return
        from rich.console import Console

        console = Console(file=self.stream, markup=False, highlight=False, emoji=False)
        for part in render(report, width=console.width, verbose=self.verbose, hint=hint):
            console.print(part)

    def _write(self, text: str) -> None:
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            if self.wrote:  # a failure would say that there is no result
                discard(self.stream)
                click.echo(f"note: standard output: {error.strerror}; what was to be written is", err=True)
                return
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"standard output: cannot be written ({error.strerror})") from None


def _subject(ctx: click.Context) -> str:
    """Return the file that a command is about: its model, or its first argument."""
    names = [parameter.name for parameter in ctx.command.params if isinstance(parameter, click.Argument)]
    name = "model" if "model" in names else next(iter(names), None)
    value = ctx.params.get(name or "")
    return str(value[0] if isinstance(value, tuple) and value else value or "")


def _writes(ctx: click.Context) -> bool:
    """Whether a command has written models by the time that it prints its results."""
    return ctx.info_name in _WRITING and not ctx.params.get("dry_run")


def _confine(ctx: click.Context) -> None:
    """Keep the command within the folders of the paths that it was given, unless it runs the user's own code.

    A recipe names more paths; `compress` does this when it has read them.
    """
    given = [one for value in ctx.params.values() for one in (value if isinstance(value, tuple) else [value])]
    runs_code = any(isinstance(one, str) and is_reference(one) for one in given)
    if runs_code or any(ctx.params.get(name) for name in _TRUSTING) or ctx.info_name == "compress":
        return
    paths = [Path(one) for one in given if isinstance(one, Path)]
    confine([*paths, *(path.absolute().parent for path in paths)], network=bool(ctx.params.get("scheduler")))


def reporting(command: _Command) -> _Command:
    """Add ``--json``, ``--quiet`` and ``--verbose``; the command gets an `Output` as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
    @click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
    @click.option("-v", "--verbose", is_flag=True, help="Leave nothing out of the tables.")
    @click.pass_context
    @functools.wraps(command)
    def wrapped(ctx: click.Context, /, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> Any:
        name = ctx.info_name or ""
        told.subject(_subject(ctx))
        check_apart(ctx)
        _confine(ctx)
        out = Output(name, sys.stdout, as_json, quiet, verbose, Progress(name, quiet), _writes(ctx))
        try:
            with contextlib.redirect_stdout(sys.stderr):
                return command(out, **options)
        except (LimitMissed, NothingToPrune) as error:
            out.list_reasons(error)
            raise
        finally:
            out.progress.close()

    return wrapped  # type: ignore[return-value] # click replaces the signature
