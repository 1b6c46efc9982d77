"""What a command writes is none of what it reads, and no two outputs are one file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import click

from onnxprune.errors import OutputError
from onnxprune.messages import visible

#: Parameters that name what is written; all others that name something that is there are inputs.
_OUTPUTS = ("output", "plot", "html", "markdown", "junit", "new_plan", "cache", "checkpoint")
_ALSO = {"prune": ("plan",)}


def check_apart(ctx: click.Context) -> None:
    """Refuse outputs that are inputs, under whatever name, or each other, before anything is done.

    Raises:
        OutputError: an output is an input.
        click.UsageError: two outputs are the same.
    """
    names = {*_OUTPUTS, *_ALSO.get(ctx.info_name or "", ())}
    outputs = {name: Path(value) for name, value in ctx.params.items() if name in names and value is not None}
    inputs = [path for name, value in ctx.params.items() if name not in names for path in _paths(value)]
    for output in outputs.values():
        for path in inputs:
            if _is_part(output, path):
                raise OutputError(
                    f"{visible(output)}: is an input of this command; inputs are never changed: "
                    "name another file"
                )
    for (one, first), (other, second) in itertools.combinations(outputs.items(), 2):
        if os.path.realpath(first) == os.path.realpath(second):
            raise click.UsageError(
                f"{_option(ctx, one)} and {_option(ctx, other)} are both {visible(first)}", ctx
            )


def _paths(value: object) -> Iterator[Path]:
    """Yield what a value names that is there: a file, a folder, or several of them."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, (str, Path)) and str(value) and os.path.lexists(value):
        yield Path(value)


def _is_part(output: Path, given: Path) -> bool:
    """Tell whether an output is what was given, or a file that is in it."""
    try:
        if output.samefile(given):
            return True
        return given.is_dir() and output.is_file() and output.parent.samefile(given)
    except (OSError, ValueError):  # one of them is not there, or no name of a file
        return False


def _option(ctx: click.Context, name: str) -> str:
    found = (param.opts[-1] for param in ctx.command.params if param.name == name)
    return next(found, name)
