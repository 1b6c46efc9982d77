"""onnxprune sensitivity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.options import name, option
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example(
    "onnxprune sensitivity model.onnx --data calib.npz", "--cache .trials --plot loss.svg"
)
METRIC = "cross_entropy or mse (default with labels, as they are); divergence (default without) or kl."


@click.command(short_help="Measure what removing from each group alone costs.", epilog=EXAMPLE)
@click.argument("model", type=options.FILE)
@click.option(
    "--data",
    required=True,
    metavar="DATA",
    help="Samples: an .npz file, a folder, module:function; random or random:256 for noise.",
)
@option("--pattern", default="channels", metavar="PATTERN", help="As for prune, except layers and dead.")
@options.amounts()
@name("--score", default="l2", help="What goes first from each group: as for prune.")
@options.before()
@name("--metric", help=METRIC)
@name("--output", help="The only model output to look at, instead of all or the one that labels fit.")
@options.alignment()
@option("--protect", multiple=True, metavar="GLOB", help="Groups or tensors that are not tried; repeatable.")
@option("--allow-inexact", is_flag=True, help="Also try what normalisation takes statistics over.")
@options.cache()
@options.jobs()
@options.scheduler()
@option(
    "--time-limit", type=click.FloatRange(min=0, min_open=True), default=None, metavar="SECONDS",
    help="Leave out trials that are left after so long; with --cache, another run goes on from there.",
)  # fmt: skip
@option("--plot", type=options.FILE, metavar="FILE", help="Draw the curves: .svg, .png or .pdf.")
@options.input_shapes()
@options.runs_on_data()
@options.seed()
@reporting
def sensitivity(out: Output, model: Path, data: str, plot: Path | None, **choices: Any) -> None:
    """Remove from one group of MODEL at a time, at several amounts, and measure what that costs.

    With labels that is the loss, without them how far the outputs move: 0 is the original, 1 as far as a
    model that always answers with the mean. prune --scope sensitivity removes where it costs least.
    """
    from onnxprune import measure_sensitivity
    from onnxprune.report.canvas import check_plot
    from onnxprune.report.plot import draw_curves

    if plot is not None:
        check_plot(plot)  # rather now than after long work
    out.step(f"trying group by group on {data}")
    found = measure_sensitivity(model, data=data, progress=out.progress.share, **choices)
    if plot is not None:
        draw_curves(found.report, plot)
    report = found.report if out.as_json or out.verbose else found.report.without("trials")
    out.show(report, written={"plot": plot} if plot is not None else {})
