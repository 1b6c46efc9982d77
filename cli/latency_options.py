"""Options of prune for a target in time, and on which machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from onnxprune_cli import options
from onnxprune_cli.options import Decorator, count, option
from onnxprune_cli.sections import in_section, section

HEADING = "A target in time (with --target-latency)"

_PERCENT = click.FloatRange(0, 100, min_open=True, max_open=True)


def latency() -> Decorator:
    """All of them, in a section of the help."""
    return section(
        HEADING,
        click.option(
            "--target-latency", metavar="SHARE|MS", callback=_target,
            help="Share of the time that may stay, or as 12ms: measured here, with --threads.",
        ),
        option("--latency-percentile", type=_PERCENT, default=50.0, metavar="P",
               help="Of the times of single runs: 50 is the median."),
        count("--latency-batch", help="Size of the batch, where that is free. [default: 1]"),
        options.provider(),
        options.provider_options(),
        option("--time-limit", type=click.FloatRange(min=0, min_open=True), default=120.0, metavar="SECONDS",
               help="What timing layers may take; with --cache DIR they are timed once."),
    )  # fmt: skip


def _target(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    from onnxprune.errors import UsageError
    from onnxprune.planning.latency.wish import parse_target

    try:
        parse_target(text)
    except UsageError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return text


def check(choices: Mapping[str, Any]) -> None:
    """Refuse what is said about measuring where nothing is to be measured.

    Raises:
        click.UsageError: naming what was given.
    """
    if choices["target_latency"] is not None or choices["targets"] is not None:  # families are timed
        return
    ctx = click.get_current_context()
    for parameter in in_section(ctx.command, HEADING):
        if ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE:
            flag = parameter.opts[0]
            raise click.UsageError(f"{flag} is of a target in time: give --target-latency, too", ctx)
