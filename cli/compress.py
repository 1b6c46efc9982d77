"""onnxprune compress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.gates import GATE_MISSED, why_missed
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune compress recipe.toml --set gates.accuracy_drop=0.005")
SET = "Say something else than the recipe: stages.prune.target_macs=0.4; repeat it for each key."
BASELINE = "The JSON report of the last accepted run, to compare with. [default: output.accepted]"
INIT = "Write a commented recipe for this model, and stop."
TRUST = "Let the recipe name code that is run: a .pt2 file, module:function."


@click.command(short_help="Run a whole recipe: stages, gates, reports.", epilog=EXAMPLE)
@click.argument("recipe", type=options.FILE)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help=SET)
@click.option(
    "--dry-run", is_flag=True, help="Say what would be done and what it would leave; write nothing."
)
@click.option("--resume", is_flag=True, help="Go on with a stage that was broken off, from its checkpoint.")
@click.option("--fresh", is_flag=True, help="Believe no earlier result: run every stage.")
@click.option("--baseline", type=options.FILE, metavar="FILE", help=BASELINE)
@click.option("--init", "init", type=options.FILE, metavar="MODEL", help=INIT)
@click.option("--data", metavar="DATA", help="With --init: samples, for the keys that need some.")
@click.option("--trust-input-code", "trust_code", is_flag=True, help=TRUST)
@reporting
def compress(out: Output, recipe: Path, init: Path | None, data: str | None, **choices: Any) -> None:
    """Do what RECIPE says: stages in their order, then measurements, gates and reports.

    Every stage's result is kept in the run folder, so a second run does only what has changed. The compressed
    model appears under its name only if every gate passes. Where one does not, the exit status is 3, the gate
    is named, and the model is kept beside its place as NAME.rejected.onnx.
    """
    if init is not None:
        _write_starter(out, recipe, init, data)
        return
    if data is not None:
        raise click.UsageError("--data goes with --init; a recipe names its data itself")
    dry_run = choices.pop("dry_run")
    from onnxprune.compression.told import Told

    told = Told(out.step, out.progress.share)
    if dry_run:
        from onnxprune.compression.preview import preview

        given = {key: choices[key] for key in ("overrides", "trust_code")}
        out.show(preview(recipe, told=told, **given))
        return
    from onnxprune import compress as run
    from onnxprune.report.summary import summary

    result = run(recipe, told=told, **choices)
    out.show(summary(result.record), written=result.written)
    for note in () if out.quiet else result.notes:
        click.echo(f"note: {note}", err=True)
    if not result.accepted:
        out.fail(
            f"{why_missed(result.record.gates)}; the model is kept aside as {result.model}",
            status=GATE_MISSED,
        )


def _write_starter(out: Output, recipe: Path, model: Path, data: str | None) -> None:
    from onnxprune.errors import OutputError
    from onnxprune.model.atomic import write_whole
    from onnxprune.recipe.starter import starter
    from onnxprune.types import Report

    if recipe.exists():
        raise OutputError(f"{recipe}: is there already; name another file for the new recipe")
    out.step(f"looking at {model}")
    text = starter(model, data, folder=recipe.parent)
    write_whole(recipe, text.encode())
    lines = {"recipe": recipe, "next": f"onnxprune compress {recipe} --dry-run"}
    out.show(Report(f"compress --init {model} -> {recipe}", {"written": lines}))
