"""onnxprune inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune inspect model.onnx --groups frozen")
GROUPS = "Which channel groups to list: those that can be pruned, or those that can't."


@click.command("inspect", short_help="Show what can be pruned, and what can't and why.", epilog=EXAMPLE)
@click.argument("model", type=options.FILE)
@click.argument("later", type=options.FILE, required=False)
@options.option("--groups", type=click.Choice(["all", "open", "frozen"]), default="all", help=GROUPS)
@options.option("--allow-inexact", is_flag=True, help="Open what statistics are taken over.")
@options.max_drift("With two plans")
@options.input_shapes()
@reporting
def inspect_model(
    out: Output, model: Path, later: Path | None, max_drift: float | None, **setting: Any
) -> None:
    """Show what is in MODEL: its interface and cost, what can be pruned, and what can't and why.

    MODEL may be a plan folder, too: what the plan removes is shown. With a LATER plan, for a model of the
    same graph, it is shown how much of what goes is something else.
    """
    from onnxprune.inspection import inspect_model as run
    from onnxprune.plan_inspection import inspect_drift, inspect_plan, is_plan

    if max_drift is not None and later is None:
        raise click.UsageError("--max-drift takes two plans: PLAN LATER")
    out.step(f"reading {model}")
    if later is not None:
        out.show(inspect_drift(model, later, max_drift=max_drift))
    else:
        out.show(inspect_plan(model) if is_plan(model) else run(model, **setting))
