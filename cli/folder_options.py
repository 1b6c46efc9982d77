"""What prune does where it is given a folder in place of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxprune_cli.options import Decorator, option
from onnxprune_cli.output import Output
from onnxprune_cli.sections import section

HEADING = "A folder (with a folder as MODEL)"


def folder() -> Decorator:
    """All of them, in a section of the help."""
    return section(
        HEADING,
        option("--only", multiple=True, metavar="GLOB",
               help="Of the models in the folder, those to prune; repeatable. The others are copied."),
    )  # fmt: skip


def check(model: Path, choices: dict[str, Any], *, plot: Path | None) -> None:
    """Refuse what is of a folder beside a model, and what is of one model beside a folder.

    Raises:
        click.UsageError: naming what was given.
    """
    if not model.is_dir():
        if choices.pop("only"):
            raise click.UsageError(f"--only is of a folder, and {model} is none")
        return
    ctx = click.get_current_context()
    for name, flag in (("targets", "--targets"), ("steps", "--steps"), ("epochs", "--epochs"),
                       ("schedule", "--schedule"), ("rewind", "--rewind")):  # fmt: skip
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{flag} takes one model, and {model} is a folder: name a model in it", ctx
            )
    if plot is not None:
        raise click.UsageError("--plot draws a schedule or a family, and a folder has neither", ctx)


def run(out: Output, folder: Path, output: Path, plan: Path | None, choices: dict[str, Any]) -> None:
    """Prune the models of a folder, and report."""
    from onnxprune import prune_folder

    report = prune_folder(
        folder, output, plan_folder=plan, told=out.step, progress=out.progress.share, **choices
    )
    out.show(report, title=f"prune {folder} -> {output}", written={"folder": output, "plans": plan})
