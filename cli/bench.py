"""onnxprune bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune bench model.onnx small.onnx --threads 1")


@click.command(short_help="Time one model, or two against each other.", epilog=EXAMPLE)
@click.argument("a", type=options.FILE)
@click.argument("b", type=options.FILE, required=False)
@options.provider()
@options.threads()
@options.count("--batch", help="Size of the batch, where that is free. [default: 1]")
@options.count("--pairs", default=60, help="Rounds in which the models take turns, at least.")
@options.option("--memory/--no-memory", default=True, help="Measure memory too.")
@options.input_shapes()
@options.seed()
@reporting
def bench(out: Output, a: Path, b: Path | None, pairs: int, memory: bool, **setting: Any) -> None:
    """Time A, or B against A, in turns in one process, beside a control that shows the noise.

    Also measured: memory to load and to run, each in a process of its own, and size on disk, as it is and as
    zstd would store it.
    """
    from onnxprune import benchmark
    from onnxprune.measure.memory import measure_memory
    from onnxprune.model.io import model_files
    from onnxprune.model.size import zstd_size_bytes
    from onnxprune.report.measured import latency_report

    paths = [a] if b is None else [a, b]
    out.step("measuring latency")
    latency = benchmark(a, b, pairs=pairs, progress=out.progress.share, **setting).as_dict()
    out.step("measuring memory")
    memories = [measure_memory(path, **setting).as_dict() for path in paths] if memory else []
    out.step("measuring size")
    plain = [sum(file.stat().st_size for file in model_files(path)) for path in paths]
    sizes = [
        {"size_bytes": n, "zstd_bytes": zstd_size_bytes(path)} for n, path in zip(plain, paths, strict=True)
    ]
    out.show(latency_report([str(path) for path in paths], latency, memory=memories, sizes=sizes))
