"""onnxprune validate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.gates import gate, show_judged
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune validate model.onnx small.onnx --data eval.npz --metric top1")
DATA = "An .npz file, a folder of them, or module:function."
METRIC = "top1, top5, mse, cosine, agreement (of B with A), or module:function."


@click.command(short_help="Measure accuracy of one model, or of two side by side.", epilog=EXAMPLE)
@click.argument("a", type=options.FILE)
@click.argument("b", type=options.FILE, required=False)
@click.option("--data", required=True, metavar="DATA", help=DATA)
@options.name("--metric", default="top1", help=METRIC)
@options.name("--output", help="The model output to judge. [default: the first]")
@options.count("--batch", default=32, help="Samples in one run, where the batch is free.")
@options.provider()
@options.threads()
@options.seed()
@gate("accuracy_drop=0.01")
@reporting
def validate(
    out: Output, a: Path, b: Path | None, data: str, seed: int, gates: tuple[str, ...], **setting: Any
) -> None:
    """Judge A on data; or B beside A, the model it was made from.

    The data holds one array for each input, whose first axis is the samples, with labels under 'label', and
    if you like the name of each sample's segment under 'segment'. Every figure comes with its interval: for
    all samples, for each segment, and for those that the original is least sure of.
    """
    from onnxprune import load_data
    from onnxprune.gates.asked import gates_of
    from onnxprune.gates.figures import evidence_of_accuracy
    from onnxprune.gates.judge import judge
    from onnxprune.gates.settings import ON_DATA, check_data, check_settings
    from onnxprune.measure.accuracy import run_on_data
    from onnxprune.report.measured import accuracy_report

    asked = gates_of(gates, [name for name in ON_DATA if not name.startswith("baseline")], alone=b is None)
    check_settings(asked, has_data=True, metric=setting["metric"])
    out.step(f"reading {data}")
    samples = load_data(data)
    segments = check_data(asked, samples, setting["metric"])
    judged, reference = (a, None) if b is None else (b, a)
    out.step(f"running {len(samples)} samples")
    found = run_on_data(judged, reference, data=samples, progress=out.progress.share, **setting)
    result = found.result(seed=seed)
    names = [str(path) for path in (judged, reference) if path is not None]
    report = accuracy_report(names, result.as_dict(), samples=len(samples))
    if not gates:
        out.show(report)
        return
    show_judged(out, report, asked, judge(asked, evidence_of_accuracy(found, result, asked, segments, seed)))
