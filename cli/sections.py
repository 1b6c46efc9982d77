"""Help of a command with many options: those of one subject stand together, under a heading."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from onnxprune_cli.options import Decorator, together

#: Heading of an option, by the id of what click keeps of it.
_HEADING = "_onnxprune_heading"


def section(heading: str, *decorators: Decorator) -> Decorator:
    """Return options as one, under a heading of their own."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        before = len(getattr(function, "__click_params__", ()))
        function = together(*decorators)(function)
        for parameter in function.__click_params__[before:]:  # type: ignore[attr-defined]
            setattr(parameter, _HEADING, heading)
        return function

    return decorate


class Sectioned(click.Command):
    """A command whose help shows each section of its options by itself."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, those without a section first."""
        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                rows.setdefault(getattr(parameter, _HEADING, "Options"), []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def in_section(command: click.Command, heading: str) -> list[click.Parameter]:
    """Return the options of a command under a heading."""
    return [parameter for parameter in command.params if getattr(parameter, _HEADING, None) == heading]
