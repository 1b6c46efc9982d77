"""onnxprune apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune apply small.plan retrained.onnx -o small.onnx", "--data calib.npz")


@click.command(short_help="Remove again what a plan says, from a re-trained model.", epilog=EXAMPLE)
@click.argument("plan", type=options.FILE)
@click.argument("model", type=options.FILE)
@options.output_file()
@options.name("--data", help="Samples to repair and prove on, as for prune.")
@options.recover(None)
@options.runs_on_data()
@options.external_data()
@options.sparse_storage()
@reporting
def apply(out: Output, plan: Path, model: Path, output: Path, **choices: Any) -> None:
    """Remove from MODEL what PLAN says: the same model, or a re-trained one of the same graph.

    PLAN is a folder that prune --plan wrote. Where that run repaired, --data repairs anew, for the weights
    of this MODEL; without it nothing is repaired. As with prune, nothing is written unless it is proved and
    verified.
    """
    storage = {key: choices.pop(key) for key in ("external_data", "sparse_storage")}
    from onnxprune import apply_plan, load, load_plan, save_pruned
    from onnxprune.model.atomic import check_target

    check_target(output)
    out.step(f"reading {plan} and {model}")
    decided = load_plan(plan)
    original = load(model)
    out.step("removing and proving")
    result = apply_plan(original, decided, progress=out.progress.share, **choices)
    out.step(f"verifying and writing {output}")
    report = save_pruned(result, output, against=model, **storage)
    out.show(report, title=f"apply {plan} to {model} -> {output}", written={"model": output})
