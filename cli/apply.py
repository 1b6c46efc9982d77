"""onnxprune apply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune apply small.plan retrained.onnx -o small.onnx", "--data calib.npz")
REFRESH = "Score anew: as much of every layer goes, but what matters least in this MODEL."
REALLOCATE = "With --refresh: also decide anew how much every layer gives, within the amount or targets."


@click.command(short_help="Remove again what a plan says, from a re-trained model.", epilog=EXAMPLE)
@click.argument("plan", type=options.FILE)
@click.argument("model", type=options.FILE)
@options.output_file()
@options.option("--refresh", is_flag=True, help=REFRESH)
@options.option("--reallocate", is_flag=True, help=REALLOCATE)
@options.max_drift("With --refresh")
@options.before()
@options.name("--data", help="Samples to repair, score and prove on, as for prune.")
@options.recover(None)
@options.option(
    "--plan", "new_plan", type=options.FILE, metavar="DIR", help="Save the plan in the names of MODEL."
)
@options.runs_on_data()
@options.external_data()
@options.sparse_storage()
@reporting
def apply(out: Output, plan: Path, model: Path, output: Path, new_plan: Path | None, **choices: Any) -> None:
    """Remove from MODEL what PLAN says: the same model, or a re-trained one of the same graph.

    PLAN is a folder that prune --plan wrote. Nodes that have other names in MODEL are found by structure.
    Where the plan's run repaired, --data repairs anew, for the weights of this MODEL; without it nothing is
    repaired. With --refresh, the report says how much of what goes is something else than in PLAN. As with
    prune, nothing is written unless it is proved and verified.
    """
    storage = {key: choices.pop(key) for key in ("external_data", "sparse_storage")}
    from onnxprune import apply_plan, load, load_plan, save_pruned
    from onnxprune.model.atomic import check_target

    check_target(output)
    out.step(f"reading {plan} and {model}")
    decided = load_plan(plan)
    original = load(model)
    out.step("choosing, removing and proving" if choices["refresh"] else "removing and proving")
    result = apply_plan(original, decided, progress=out.progress.share, **choices)
    out.step(f"verifying and writing {output}")
    report = save_pruned(result, output, against=model, plan_folder=new_plan, **storage)
    written = {"model": output, **({} if new_plan is None else {"plan": new_plan})}
    out.show(report, title=f"apply {plan} to {model} -> {output}", written=written)
