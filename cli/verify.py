"""onnxprune verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune verify small.onnx --against model.onnx --plan small.plan")


@click.command(short_help="Check that a file is what it claims to be.", epilog=EXAMPLE)
@click.argument("model", type=options.FILE)
@click.option("--against", type=options.FILE, metavar="MODEL", help="The model it was made from.")
@click.option("--plan", type=options.FILE, metavar="DIR", help="The plan that was applied.")
@options.input_shapes()
@options.threads()
@reporting
def verify(out: Output, model: Path, plan: Path | None, **setting: Any) -> None:
    """Check that MODEL is what it claims to be.

    The more you give, the more is checked: the file alone; with the original, that interface and untouched
    weights are the same; with the plan, that what it removes is gone and its pattern holds.
    """
    from onnxprune import load_plan
    from onnxprune import verify as run
    from onnxprune.messages import visible

    out.step(f"verifying {model}")
    report = run(model, plan=None if plan is None else load_plan(plan), **setting)
    out.show(report)
    failed = [check for check in report.checks if not check.passed]
    if failed:
        first = f"{failed[0].name}: {failed[0].detail}"
        first = first.replace(f"{visible(model)}: ", "")  # stands in front already
        out.fail(f"{model}: {len(failed)} of {len(report.checks)} checks failed; {first}", status=1)
