"""onnxprune quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.options import name
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example(
    "onnxprune quantize small.onnx -o int8.onnx --data calibration.npz",
    "--reference model.onnx --evaluation eval.npz --max-drop 0.01",
)
FORM = "int8, dynamic (ranges of activations found in every run), int4 (large matrix products) or float16."
DATA = "Samples for ranges of activations: an .npz file, a folder, module:function; random:64 draws noise."
EVALUATION = "Samples to judge on, with labels if there are any. [default: a quarter of --data]"
METRIC = "top1, topK, mse, cosine, agreement or module:function. [default: what fits]"
MAX_DROP = "What the metric may lose; layers go back to float until it is met. [default: 0.01 of a share]"
COMPUTING = "Of int8: integer, dynamic, float (only weights are stored so), or auto: what is fastest here."

#: How many times smaller than the original the forms are at the most: there must be room for the rest.
_TIMES_SMALLER = {"float16": 2, "int8": 4, "dynamic": 4, "int4": 8}


@click.command(short_help="Store and compute in fewer bits, zeros kept.", epilog=EXAMPLE)
@click.argument("model", type=options.FILE)
@options.output_file()
@name("--form", default="int8", help=FORM)
@click.option("--data", metavar="DATA", help=DATA)
@click.option(
    "--reference", type=options.FILE, metavar="MODEL", help="The original to compare with. [default: MODEL]"
)
@click.option("--evaluation", metavar="DATA", help=EVALUATION)
@click.option("--metric", metavar="NAME", help=METRIC)
@click.option("--max-drop", type=click.FloatRange(min=0), metavar="NUMBER", help=MAX_DROP)
@click.option("--keep-float", multiple=True, metavar="GLOB", help="Nodes or weights that stay; repeatable.")
@options.option("--per-channel/--per-tensor", default=True, help="A scale for each output channel, or one.")
@name("--calibration", default="minmax", help="How ranges are found: minmax, percentile or entropy.")
@name("--computing", default="auto", help=COMPUTING)
@name("--equalize", default="auto", help="Even out channels between layers: auto (where it helps), on, off.")
@name(
    "--correct-bias", default="auto", help="Take mean errors out of biases: auto (where it helps), on, off."
)
@options.count("--block-size", default=32, help="Weights that share a scale in int4.")
@click.option("--plan", type=options.FILE, metavar="DIR", help="The plan whose zeros must be there.")
@options.input_shapes()
@options.count("--batch", default=32, help="Samples in one run on data, where the batch is free.")
@options.threads()
@options.seed()
@options.external_data()
@options.sparse_storage()
@reporting
def quantize(out: Output, model: Path, output: Path, **choices: Any) -> None:
    """Write MODEL with weights of fewer bits: int8 with ranges from --data, dynamic, int4 or float16.

    Batch norms are folded first, zeros and N:M patterns stay and are verified, and layers stay in float where
    the accuracy bound asks for it. The report has a row for each layer and says what each step gave.
    """
    storage = {key: choices.pop(key) for key in ("external_data", "sparse_storage")}
    from onnxprune import load, save_quantized
    from onnxprune import quantize as run
    from onnxprune.model.atomic import check_room, check_target
    from onnxprune.model.size import tensor_bytes

    check_target(output)  # rather now than after long work
    original = load(model)
    if not storage["sparse_storage"]:  # which leaves the zeros out
        check_room(output, tensor_bytes(original) // _TIMES_SMALLER.get(choices["form"], 8))
    out.step(f"quantizing {model}")
    result = run(original, progress=out.progress.share, **choices)
    out.step(f"verifying and writing {output}")
    report = save_quantized(result, output, against=model, **storage)
    out.show(report, title=f"quantize {model} -> {output}", written={"model": output})
