"""onnxprune finetune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options, tuning_options
from onnxprune_cli.options import name
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example(
    "onnxprune finetune small.onnx -o tuned.onnx --data train.npz", "--teacher model.onnx --checkpoint run"
)
DATA = "Samples: an .npz file, a folder, module:function; labels under 'label', if there are any."
VALIDATION = "Samples that the best weights are chosen by, or the share of --data that is set aside; 0: none."
PLAN = "The plan whose zeros are held; without one, those of weights that are at least 10 % zeros."


@click.command(short_help="Tune the weights that are left, zeros held.", epilog=EXAMPLE)
@click.argument("model", type=options.FILE)
@options.output_file()
@click.option("--data", required=True, metavar="DATA", help=DATA)
@click.option("--teacher", type=options.FILE, metavar="MODEL", help="The original: tune by its outputs.")
@name("--validation", default="0.1", help=VALIDATION)
@click.option("--plan", type=options.FILE, metavar="DIR", help=PLAN)
@name("--hold", default="auto", help="auto: zeros stay zero; none: they may move.")
@tuning_options.aims()
@tuning_options.steps()
@tuning_options.batch()
@tuning_options.optimizer()
@tuning_options.looks()
@tuning_options.checkpoints()
@options.seed()
@options.external_data()
@options.sparse_storage()
@reporting
def finetune(out: Output, model: Path, output: Path, **choices: Any) -> None:
    """Tune the weights of MODEL on data, from labels, from the original's outputs (--teacher), or from both.

    The graph stays as it is, zeros of pruned weights stay zero, and the best weights on samples that were set
    aside are written, verified. To share the work among processes or machines, start the command by
    torchrun --no-python --nproc-per-node 2 onnxprune finetune ...
    """
    options.only_one(choices, "epochs", "steps")
    storage = {key: choices.pop(key) for key in ("external_data", "sparse_storage")}
    from onnxprune import finetune as run
    from onnxprune import save_finetuned
    from onnxprune.model.atomic import check_target

    check_target(output)  # rather now than after long work
    settings = tuning_options.settings_of(choices)
    out.step(f"tuning {model} on {choices['data']}")
    result = run(model, settings=settings, progress=out.progress.standing, **choices)
    if result.first_process:
        out.step(f"verifying and writing {output}")
        report = save_finetuned(result, output, against=model, **storage)
        out.show(report, title=f"finetune {model} -> {output}", written={"model": output})
