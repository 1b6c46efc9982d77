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
@options.option("--groups", type=click.Choice(["all", "open", "frozen"]), default="all", help=GROUPS)
@options.option("--allow-inexact", is_flag=True, help="Open what statistics are taken over.")
@options.input_shapes()
@reporting
def inspect_model(out: Output, model: Path, **setting: Any) -> None:
    """Show what is in MODEL: its interface and cost, what can be pruned, and what can't and why."""
    from onnxprune.inspection import inspect_model as run

    out.step(f"reading and analyzing {model}")
    out.show(run(model, **setting))
