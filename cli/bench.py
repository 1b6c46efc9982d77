"""onnxprune bench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune_cli import options
from onnxprune_cli.gates import gate, show_judged
from onnxprune_cli.output import Output, reporting

if TYPE_CHECKING:
    from onnxprune import Execution
    from onnxprune.gates.evidence import Evidence
    from onnxprune.gates.settings import GateSettings
    from onnxprune.measure.latency import LatencyResult, Timed

EXAMPLE = options.example("onnxprune bench model.onnx small.onnx --threads 1 --profile")


def _list_providers(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from onnxprune.report.table import plain_text
    from onnxprune.runtime import describe_providers
    from onnxprune.types import Report

    report = Report("where models can run", {"providers": describe_providers()})
    click.echo(plain_text(report, width=120, verbose=True), nl=False)
    ctx.exit()


@click.command(short_help="Time one model, or two against each other.", epilog=EXAMPLE)
@click.argument("a", type=options.FILE)
@click.argument("b", type=options.FILE, required=False)
@options.execution()
@click.option(
    "--providers", is_flag=True, is_eager=True, expose_value=False, callback=_list_providers,
    help="List the providers, which of them are there and how to get the others, and do nothing else.",
)  # fmt: skip
@options.option(
    "--io-binding/--no-io-binding", default=True,
    help="On a GPU, keep inputs and outputs there, so that copies are not counted.",
)  # fmt: skip
@options.count("--batch", help="Size of the batch, where that is free. [default: 1]")
@options.count("--pairs", default=60, help="Rounds in which the models take turns, at least.")
@options.numbers(
    "--sweep-batch", least=1, help_text="Time at each of these batch sizes too, such as 1,2,4,8."
)
@options.numbers("--sweep-threads", least=0, help_text="Time with these numbers of threads too.")
@click.option("--profile", is_flag=True, help="Tell where the time goes, layer by layer.")
@click.option("--plot", type=options.FILE, metavar="FILE", help="Draw the profile: .svg, .png or .pdf.")
@options.option("--memory/--no-memory", default=True, help="Measure memory too.")
@options.input_shapes()
@options.seed()
@gate("latency_ratio=0.8")
@reporting
def bench(
    out: Output,
    a: Path,
    b: Path | None,
    pairs: int,
    memory: bool,
    io_binding: bool,
    sweep_batch: list[int],
    sweep_threads: list[int],
    profile: bool,
    plot: Path | None,
    gates: tuple[str, ...],
    **setting: Any,
) -> None:
    """Time A, or B against A, in turns in one process, beside a control that shows the noise.

    Also measured: memory to load and to run, each in a process of its own, and size on disk, as it is and as
    zstd would store it.
    """
    from onnxprune.gates.asked import gates_of
    from onnxprune.gates.judge import judge
    from onnxprune.gates.settings import GATES, ON_DATA, ON_MEMORY
    from onnxprune.measure.intervals import least_rounds
    from onnxprune.measure.latency import time_in_turns
    from onnxprune.measure.memory import measure_memory
    from onnxprune.measure.sweeps import sweep
    from onnxprune.report.canvas import check_plot
    from onnxprune.report.measured import latency_report

    if plot is not None:
        check_plot(plot)
    judged = [name for name in GATES if name not in ON_DATA and not name.startswith("baseline")]
    asked = gates_of(gates, judged, alone=b is None)
    execution = options.as_execution(setting)
    paths = [a] if b is None else [a, b]
    timed: dict[str, Any] = {"pairs": pairs, "io_binding": io_binding, "execution": execution, **setting}
    timed["progress"] = out.progress.share
    swept = []
    if sweep_batch or sweep_threads:
        out.step("sweeping")
        swept = sweep(a, b, batches=sweep_batch, threads=sweep_threads, **timed)
    if asked.latency_p95_ms is not None:
        timed["pairs"] = max(pairs, least_rounds(0.95, asked.confidence))
    out.step("measuring latency")
    times = time_in_turns(a, paths[1:], **timed)
    result = times.beside(None if b is None else 1)
    latency = result.as_dict()
    layers = None
    if profile or plot is not None:
        out.step("profiling")
        layers = _layers(paths, execution, setting, latency)
    memories = []
    if memory or any(name in ON_MEMORY for name in asked.asked()):
        out.step("measuring memory")
        memories = [measure_memory(path, execution=execution, **setting).as_dict() for path in paths]
    names = [str(path) for path in paths]
    report = latency_report(names, latency, memory=memories, sizes=_sizes(paths), sweep=swept, layers=layers)
    if plot is not None and layers is not None:
        from onnxprune.report.layers_plot import draw_layers

        draw_layers(next(iter(layers.values())), report.title, plot)
    if not gates:
        out.show(report)
        return
    evidence = _evidence(paths, asked, times, result, memories, setting["input_shapes"])
    show_judged(out, report, asked, judge(asked, evidence))


def _evidence(
    paths: list[Path],
    asked: GateSettings,
    times: Timed,
    result: LatencyResult,
    memories: list[dict[str, Any]],
    input_shapes: Mapping[str, tuple[int, ...]] | None,
) -> Evidence:
    """Return what the gates are judged by; the models are counted only where one asks for that."""
    from onnxprune.gates.evidence import Evidence
    from onnxprune.gates.figures import count_models, judge_latency
    from onnxprune.gates.settings import ON_MEMORY, ON_TIME
    from onnxprune.record import MemoryRecord

    key = 0 if len(paths) == 1 else 1
    counted = any(name not in (*ON_TIME, *ON_MEMORY) for name in asked.asked())
    return Evidence(
        **(count_models(((str(path), path) for path in paths), input_shapes) if counted else {"models": ()}),
        memory=tuple(
            MemoryRecord(name=str(path), **found) for path, found in zip(paths, memories, strict=False)
        ),
        judged_latency=judge_latency(times, key, result, asked.confidence),
        confidence=asked.confidence,
    )


def _sizes(paths: list[Path]) -> list[dict[str, int]]:
    from onnxprune.model.size import files_bytes, zstd_size_bytes

    return [{"size_bytes": files_bytes(path), "zstd_bytes": zstd_size_bytes(path)} for path in paths]


def _layers(
    paths: list[Path], execution: Execution, setting: dict[str, Any], latency: dict[str, Any]
) -> dict[str, Any]:
    """Profile; return the sections of the report, that of the plot first."""
    from onnxprune.errors import OnnxPruneError
    from onnxprune.inspection import macs_of_nodes
    from onnxprune.measure.inputs import random_inputs
    from onnxprune.measure.profile import by_time, compare, profile, summarize
    from onnxprune.model.io import load

    models = [load(path) for path in paths]
    feeds = random_inputs(models[0], **setting)
    profiles = profile(paths, feeds, execution)
    timings = [latency["a"], latency["b"]]
    times = [summarize(one, timing["minimum_ms"]) for one, timing in zip(profiles, timings, strict=False)]
    if len(paths) > 1:
        return {
            "layers before and after": compare(*profiles, seed=setting["seed"]),
            "where the time goes": [
                {"model": str(path), **one} for path, one in zip(paths, times, strict=True)
            ],
        }
    try:
        macs = macs_of_nodes(models[0], {name: array.shape for name, array in feeds.items()})
    except OnnxPruneError:  # the times stand without them: there are models that can't be analysed
        macs = {}
    return {"layers by time": by_time(profiles[0], macs), "where the time goes": times[0]}
