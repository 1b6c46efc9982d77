"""onnxprune advise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune advise model.onnx --data calib.npz --threads 2")
DATA = "Samples, labelled or not, to say what it costs: an .npz file, a folder, or module:function."
METRIC = "As for validate. [default: top1 or mse with labels, agreement or cosine without]"


@click.command(short_help="Say what to do with a model on this machine, and why.", epilog=EXAMPLE)
@click.argument("model", type=options.FILE)
@click.option("--data", metavar="DATA", help=DATA)
@options.name("--metric", help=METRIC)
@options.execution()
@options.count("--batch", help="Size of the batch, where that is free. [default: 1]")
@options.option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), default=120.0, metavar="SECONDS",
    help="No measurement begins after so long.",
)  # fmt: skip
@options.jobs("make and judge candidates")
@options.scheduler()
@options.input_shapes()
@options.seed()
@reporting
def advise(out: Output, model: Path, **choices: Any) -> None:
    """Time MODEL by layer on this machine, try what could make it faster, and say what is worth it.

    Channels, heads, experts and layers are really removed, in memory, and INT8 is really quantized; each is
    timed against MODEL in turns. Nothing is written.
    """
    from onnxprune import advise as run
    from onnxprune.advice.summary import for_people

    out.step(f"reading {model}")
    execution = options.as_execution(choices)
    found = run(model, execution=execution, progress=out.step, **choices)
    sparse = execution.provider in ("cuda", "tensorrt", "tensorrt-rtx")
    out.show(found.report if out.as_json else for_people(found.report, sparse=sparse, verbose=out.verbose))
