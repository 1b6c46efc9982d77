"""onnxprune prune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import family_options, folder_options, gradual_options, latency_options, options
from onnxprune_cli.options import name, option
from onnxprune_cli.output import Output, reporting
from onnxprune_cli.sections import Sectioned

EXAMPLE = options.example(
    "onnxprune prune model.onnx -o small.onnx --target-macs 0.5", "--data calib.npz --recover reconstruct"
)
PATTERNS = (
    "channels, heads, head_dim, experts (shapes shrink); layers (residual branches go); dead (the results "
    "stay); unstructured, 2:4, block:RxC (zeros)."
)
SCORES = (
    "What matters. Channels: l1, l2 (default), lamp, fpgm, bn, random; on data activation, wanda, obs "
    "(default with --recover), ablation. Zeros: l1, l2 (default), lamp, random; on data wanda, obs. Both, by "
    "gradients on data: taylor, fisher, obd, snip (channels also taylor_activation); by --before: movement, "
    "movement_distance. Layers: l2, random; on data influence (default), taylor_activation, fisher."
)
SCOPES = (
    "uniform: the same share everywhere (default); global: one threshold (default for layers, zeros on data, "
    "and with --recover); isomorphic: one for each structure of channels; owl: zeros, fewer where there are "
    "outliers; knapsack: the most importance within the targets (default for several of them, and for one in "
    "time); sensitivity: where it costs least, measured on --data."
)

#: What goes where the user says nothing of how much.
USUAL_AMOUNT = 0.5

PLOT = "Draw the schedule and the losses (with --steps), or the family (with --targets): .svg, .png, .pdf."


@click.command(cls=Sectioned, short_help="Remove what matters least, prove it, write it.", epilog=EXAMPLE)
@click.argument("model", type=options.FILE)
@options.output_file()
@option("--pattern", default="channels", metavar="PATTERN", help=PATTERNS)
@options.target()
@name("--score", help=SCORES)
@options.before()
@name("--scope", help=SCOPES)
@name("--data", help="Samples: an .npz file, a folder, module:function; random or random:256 for noise.")
@options.recover("none")
@options.rounds()
@options.alignment()
@options.limits()
@option("--plan", type=options.FILE, metavar="DIR", help="Save what was decided, to apply it again.")
@option("--plot", type=options.FILE, metavar="FILE", help=PLOT)
@options.cache()
@options.jobs()
@options.scheduler()
@options.input_shapes()
@options.runs_on_data()
@options.seed()
@options.external_data()
@options.sparse_storage()
@latency_options.latency()
@family_options.family()
@gradual_options.gradual()
@folder_options.folder()
@reporting
def prune(
    out: Output, model: Path, output: Path, plan: Path | None, plot: Path | None, **choices: Any
) -> None:
    """Remove what matters least from MODEL, prove the result, and write it.

    Give --amount (0.5 where nothing is given), or one or more of --target-latency, --target-macs,
    --target-params and --target-size, which are then met together; N:M and dead need none of them. For
    --target-latency, layers are timed on this machine at the counts that matter, and the model is cut, timed
    whole and cut again until it takes what it may. Nothing is written unless the pruned model computes what
    the original computes with zeros in the same places (dead: what the original computes), and passes verify.
    With --recover, what is left is then repaired from --data, and the repair is dropped where it does not
    help on samples that were held out.
    Patterns of zeros save room on disk, not time: ONNX Runtime computes with zeros as with any number.
    With --steps, MODEL is tuned on --data while more and more of it goes. With --targets, several models are
    made, from figures that are measured once. Where MODEL is a folder, such as Hugging Face Optimum exports,
    its models are pruned one by one, and OUT is a new folder with everything else that was in it.
    """
    options.check_targets(choices)
    latency_options.check(choices)
    folder_options.check(model, choices, plot=plot)
    storage = {key: choices.pop(key) for key in ("external_data", "sparse_storage")}
    tuning = gradual_options.take(choices, plot)
    family = family_options.take(choices, tuned=tuning is not None, plan=plan)
    if family is None and options.lacks_budget(choices):
        choices["amount"] = USUAL_AMOUNT
        out.tell(f"no budget was given: --amount {USUAL_AMOUNT}")
    if model.is_dir():
        folder_options.run(out, model, output, plan, storage | choices)
        return
    if family is not None:
        family_options.run(out, model, output, family, plot, storage, choices)
        return
    if plot is not None and tuning is None:
        raise click.UsageError("--plot draws a schedule (with --steps) or a family (with --targets)")
    from onnxprune import load, prune_gradually, save_pruned
    from onnxprune import prune as run
    from onnxprune.model.atomic import check_room, check_target
    from onnxprune.model.size import tensor_bytes
    from onnxprune.model.together import Together
    from onnxprune.planning.recipes import STRUCTURED
    from onnxprune.report.plot import draw_schedule

    check_target(output)  # rather now than after long work
    out.step(f"reading {model}")
    original = load(model)
    if choices["pattern"] not in STRUCTURED and not storage["sparse_storage"]:
        check_room(output, tensor_bytes(original))  # zeros take as much of it as weights
    if tuning is None:
        repairs = choices["recover"] != "none"
        out.step(f"deciding, removing, proving{', repairing' if repairs else ''}")
        result = run(original, progress=out.progress.share, **choices)
    else:
        out.step(f"pruning and tuning on {choices['data']}")
        result = prune_gradually(original, told=out.progress.standing, **tuning, **choices)
    out.step(f"verifying and writing {output}")
    written = {"model": output, "plan": plan}
    with Together() as together:
        report = save_pruned(result, output, against=model, plan_folder=plan, together=together, **storage)
        if plot is not None:
            draw_schedule(report, plot)
            written["plot"] = plot
    out.show(report, title=f"prune {model} -> {output}", written=written)
