"""Options of prune that make a family of models, and what they become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from onnxprune_cli.options import Decorator, name
from onnxprune_cli.output import Output
from onnxprune_cli.sections import in_section, section

HEADING = "A family of models (with --targets; OUT is a folder)"

_KINDS = ("latency", "macs", "params", "size", "amount")

#: What makes no sense with a family, and what to do instead.
_APART = {
    "plan": "every member has its plan beside it: leave --plan out",
    "steps": "each model is tuned by itself: give one target, or finetune members",
}


def family() -> Decorator:
    """All of them, in a section of the help."""
    return section(
        HEADING,
        click.option("--targets", metavar="SHARES", callback=_targets,
                     help="Several targets, such as 0.8,0.6,0.4: a model for each, from one measurement."),
        click.option("--targets-of", type=click.Choice(_KINDS), default="latency", show_default=True,
                     help="What may stay of what; amount: the share that goes."),
        name("--eval", "evaluation", help="Samples with labels, to measure accuracy on. Without: how close "
             "outputs stay on --data."),
        name("--metric", help="As for validate, with --eval. [default: top1]"),
    )  # fmt: skip


def _targets(ctx: click.Context, param: click.Parameter, text: str | None) -> list[str] | None:
    words = None if text is None else text.replace(",", " ").split()
    if words == []:
        raise click.BadParameter("is a list of shares such as 0.8,0.6,0.4", ctx, param)
    return words


def take(choices: dict[str, Any], *, tuned: bool, plan: Path | None) -> dict[str, Any] | None:
    """Take these options out of what was chosen.

    Args:
        choices: what was chosen.
        tuned: the model is to be tuned meanwhile.
        plan: what --plan says.

    Returns:
        The options by name; None where no family is asked for.

    Raises:
        click.UsageError: an option of a family without targets, or one that does not go with them.
    """
    ctx = click.get_current_context()
    names = [str(parameter.name) for parameter in in_section(ctx.command, HEADING)]
    mine = {key: choices.pop(key) for key in names}
    if mine["targets"] is None:
        for key in names:
            if ctx.get_parameter_source(key) is ParameterSource.COMMANDLINE:
                flag = {"evaluation": "--eval"}.get(key, f"--{key.replace('_', '-')}")
                raise click.UsageError(f"{flag} is of a family: give --targets, such as 0.8,0.6,0.4", ctx)
        return None
    for key, present in (("plan", plan is not None), ("steps", tuned)):
        if present:
            raise click.UsageError(_APART[key], ctx)
    if mine["metric"] is not None and mine["evaluation"] is None:
        raise click.UsageError("--metric is measured on samples: give --eval eval.npz", ctx)
    return mine


def run(
    out: Output,
    model: Path,
    folder: Path,
    wanted: dict[str, Any],
    plot: Path | None,
    storage: dict[str, Any],
    choices: dict[str, Any],
) -> None:
    """Make a family of a model, write it, measure it, and report.

    Args:
        out: where results go.
        model: the file.
        folder: where members, their plans and the report go.
        wanted: by `take`.
        plot: a picture of the family; None for none.
        storage: how models are stored.
        choices: the other options of prune.
    """
    from onnxprune import load, measure_family, prune_family
    from onnxprune.family import Member, check_folder, save_member
    from onnxprune.report.canvas import check_plot
    from onnxprune.report.pareto import draw_family
    from onnxprune.runtime import Execution

    check_folder(folder)  # rather now than after long work
    if plot is not None:
        check_plot(plot)
    out.step(f"reading {model}")
    original = load(model)
    saved = []

    def write(member: Member) -> None:
        out.step(f"verifying and writing {member.name}")
        saved.append(save_member(member, folder, name=model.stem, against=model, **storage))
        out.step("deciding, removing, proving")

    out.step("deciding, removing, proving")
    kind = wanted["targets_of"]
    found = prune_family(
        original, wanted["targets"], targets_of=kind, made=write, progress=out.progress.share, **choices
    )
    out.step("measuring")
    provider_options = tuple(sorted((choices["provider_options"] or {}).items()))
    evaluation, calibration = wanted["evaluation"], choices["data"]
    report = measure_family(
        found,
        saved,
        model,
        data=evaluation or calibration,
        metric=None if evaluation is None else wanted["metric"] or "top1",
        source=None if evaluation or not calibration else f"{calibration}, which is what decided",
        execution=Execution(choices["provider"], choices["threads"], provider_options),
        latency_batch=choices["latency_batch"],
        batch=choices["batch"],
        seed=choices["seed"],
        input_shapes=choices["input_shapes"],
        progress=out.progress.share,
    )
    title = f"prune {model} -> {folder}: a family by {kind}"
    if plot is not None and saved:
        draw_family(report, plot, title=f"{model.stem}: a family by {kind}")
    written = {entry.name: entry.path for entry in saved} | (
        {"plot": plot} if plot is not None and saved else {}
    )
    out.show(report, title=title, written=written)
    if found.missed:
        out.fail(_told(found.missed), status=3)


def _told(missed: Sequence[Any]) -> str:
    """Return one line on targets that were missed."""
    return f"missed: {'; '.join(f'{each.name}: {each.reason}' for each in missed)}"
