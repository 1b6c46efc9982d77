"""onnxprune import."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune import package.module:factory -o m.onnx --input-shape 1,3,224,224")
SHAPE = "Shape of an input of forward, such as x=1,3,224,224 or tokens=1,128:int64; repeatable."
TRUST = "Load a .pt2 file although that may run code it holds."


@click.command("import", short_help="Turn a PyTorch model into an ONNX file.", epilog=EXAMPLE)
@click.argument("source")
@options.output_file()
@click.option("--input-shape", "shapes", multiple=True, metavar="[NAME=]SIZES[:DTYPE]", help=SHAPE)
@options.count("--opset", help="ONNX operator set. [default: the exporter's]")
@click.option("--static-batch", is_flag=True, help="Keep the batch at its size instead of making it free.")
@click.option("--keep-batch-norm", is_flag=True, help="Do not fold batch norms into convolutions.")
@click.option("--trust-input-code", is_flag=True, help=TRUST)
@options.external_data()
@options.seed()
@reporting
def import_model(out: Output, source: str, output: Path, **setting: Any) -> None:
    """Turn SOURCE into an ONNX file, and compare the two on random inputs.

    SOURCE is package.module:factory (a function without arguments, a class or a module; naming it runs it), a
    .pt2 file, or an .onnx file, which is checked and written anew.
    """
    external_data, dynamic_batch = setting.pop("external_data"), not setting.pop("static_batch")
    from onnxprune import import_model as run
    from onnxprune import save
    from onnxprune.model.atomic import check_target
    from onnxprune.types import Report

    check_target(output)  # rather now than after a long export
    out.step(f"importing {source}")
    shapes = options.of_forward(setting.pop("shapes"))
    found = run(source, input_shapes=shapes, dynamic_batch=dynamic_batch, **setting)
    out.step(f"writing {output}")
    save(found.model, output, external_data=external_data)
    figures = ("max_abs_difference", "max_relative_difference", "compared_batch_sizes")
    compared = found.max_abs_difference is not None
    sections = {
        "difference from the source": {key: getattr(found, key) for key in figures if compared},
        "free axes": [{"value": name, "axes": axes} for name, axes in found.dynamic_axes.items()],
        "baked masks": [{"weight": line} for line in found.baked_masks],
        "notes": [{"note": line} for line in found.notes],
        "written": {"model": output},
    }
    out.show(Report(f"import {source} -> {output}", sections, seconds={"import": found.seconds}))
