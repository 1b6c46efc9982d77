"""Options of prune that tune while it prunes, and what they become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxprune_cli import options, tuning_options
from onnxprune_cli.options import Decorator, count, name, share, together
from onnxprune_cli.sections import in_section, section

HEADING = "Pruning while tuning (with --steps, --epochs, --schedule or --rewind)"

#: Any of these asks for it.
_ASKED_BY = ("steps", "epochs", "schedule", "rewind")

#: Options of a schedule, and the names of `onnxprune.prune_gradually` for them.
_TIMING = {
    "schedule": "schedule", "schedule_initial": "initial", "schedule_warm_up": "warm_up",
    "schedule_every": "frequency", "schedule_freeze": "freeze",
}  # fmt: skip

#: What both prune and tuning take.
_SHARED = ("batch", "seed")


def gradual() -> Decorator:
    """All of them, in a section of the help."""
    return section(
        HEADING,
        schedule(),
        tuning_options.aims(),
        tuning_options.steps(),
        tuning_options.optimizer(),
        tuning_options.looks(),
        tuning_options.checkpoints(),
    )


def schedule() -> Decorator:
    """When what share goes, and what is left starts from."""
    return together(
        name("--schedule", help="How what goes grows over the steps, or over --rounds of so many steps each: "
             "one-shot, linear, cubic (default), geometric (default with --rewind)."),
        share("--schedule-initial", default=0.0, help="Share that goes at the first pruning."),
        share("--schedule-warm-up", help="Share of the steps before it: 0.1, or 0 for one-shot."),
        count("--schedule-every", help="Steps from one pruning to the next: about 20 prunings."),
        share("--schedule-freeze", default=0.25, help="Share of the steps after the last."),
        click.option("--rewind", type=options.FILE, metavar="EARLIER", help="Lottery ticket: after each "
                     "round, weights go back to those of this file of the same graph."),
        name("--validation", default="0.1", help="Samples that the best weights are chosen by, or the share "
             "of --data that is set aside; 0: none."),
    )  # fmt: skip


def take(choices: dict[str, Any], plot: Path | None) -> dict[str, Any] | None:
    """Take these options out of what was chosen, as arguments of `onnxprune.prune_gradually`.

    Args:
        choices: what was chosen.
        plot: what --plot says.

    Returns:
        The arguments; None where pruning goes without tuning.

    Raises:
        click.UsageError: an option of tuning without tuning, or two that exclude each other.
    """
    ctx = click.get_current_context()
    names = [str(parameter.name) for parameter in in_section(ctx.command, HEADING)]
    if all(choices[key] is None for key in _ASKED_BY):
        for key in names:
            if ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE:
                flag = f"--{key.replace('_', '-')}"
                raise click.UsageError(
                    f"{flag} is of pruning while tuning: say how long, such as --steps 1000", ctx
                )
            choices.pop(key)
        return None
    options.only_one(choices, "epochs", "steps")
    if choices.pop("recover") != "none":
        raise click.UsageError("--recover and tuning exclude each other: leave --recover out", ctx)
    if choices["data"] is None:
        raise click.UsageError("tuning takes samples: give --data train.npz", ctx)
    if plot is not None:
        _check_plot(choices, plot)
    mine = {key: choices.pop(key) for key in names}
    found = {argument: mine.pop(key) for key, argument in _TIMING.items()}
    found |= {key: mine.pop(key) for key in ("validation", "checkpoint", "resume", "rewind")}
    mine |= {key: choices[key] for key in _SHARED}
    return {**found, "settings": tuning_options.settings_of(mine)}


def _check_plot(choices: dict[str, Any], plot: Path) -> None:
    from onnxprune.report.canvas import check_plot

    if choices["rounds"] > 1 or choices["rewind"] is not None:
        raise click.UsageError("--plot draws one run: leave it out, or --rounds and --rewind")
    check_plot(plot)  # rather now than after long work
