"""Runs the commands of onnxprune on a decoder, one by one, and prints what each took in memory and time.

    python benchmarks/llm/run.py FOLDER                     # Llama-3.2-1B's shape; 25 GB of disk
    python benchmarks/llm/run.py FOLDER --form contrib --half
    python benchmarks/llm/run.py FOLDER --only obs verify

FOLDER gets the model, which is written once, and outputs, which go again. Memory is the peak of what is
resident of one process, files that are mapped into it included.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from decoder import Shape, write_decoder, write_samples

#: Name -> arguments; what a later one reads is made by an earlier one.
COMMANDS = {
    "inspect": "inspect {model}",
    "cut": "prune {model} -o {out}/cut.onnx --amount 0.25 --align 1 --plan {out}/cut.plan",
    "apply": "apply {out}/cut.plan {model} -o {out}/applied.onnx",
    "layers": "prune {model} -o {out}/layers.onnx --pattern layers --amount 0.25 --data {data} --batch 1",
    "magnitude": "prune {model} -o {out}/magnitude.onnx --pattern 2:4",
    "obs": "prune {model} -o {out}/obs.onnx --pattern 2:4 --score obs --data {data} --batch 1 "
           "--plan {out}/obs.plan",
    "verify": "verify {out}/obs.onnx --against {model} --plan {out}/obs.plan",
}  # fmt: skip

#: What is not needed any more once a command is through.
DONE_WITH = {
    "apply": ("cut", "applied"),
    "layers": ("layers",),
    "magnitude": ("magnitude",),
    "verify": ("obs",),
}


def run(arguments: list[str], log: Path) -> tuple[int, float, float, int]:
    """Run a command; return its status, seconds, seconds of CPU, and the peak of its resident bytes."""
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", "from onnxprune_cli.main import run; run()", *arguments],
            stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
    cpu = usage.ru_utime + usage.ru_stime
    return os.waitstatus_to_exitcode(status), time.perf_counter() - started, cpu, usage.ru_maxrss * 1024


def rows(names: Sequence[str], places: Mapping[str, Path]) -> Iterator[str]:
    """Run commands in order, and yield a row of a table for each."""
    for name in names:
        arguments = [part.format(**places) for part in COMMANDS[name].split()]
        status, seconds, cpu, peak = run(arguments, places["out"] / f"{name}.log")
        shown = COMMANDS[name].format(model="M", data="D", out="O")
        yield f"| `{shown}` | {status} | {peak / 2**30:.2f} GiB | {seconds:.0f} | {cpu:.0f} |"
        for stem in DONE_WITH.get(name, ()):
            for left in places["out"].glob(f"{stem}.*"):
                if left.suffix != ".log":
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


def main() -> None:
    """Write the decoder if it is missing, and run the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=["plain", "contrib"], default="plain")
    parser.add_argument("--half", action="store_true", help="float16")
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    options = parser.parse_args()
    shape = Shape(layers=options.layers)
    folder: Path = options.folder
    places = {"model": folder / "model.onnx", "data": folder / "calib.npz", "out": folder / "out"}
    places["out"].mkdir(parents=True, exist_ok=True)
    if not places["model"].exists():
        write_decoder(folder, shape, form=options.form, half=options.half)
        write_samples(places["data"], shape, 8, 128, form=options.form, half=options.half)
    print("| command | status | peak resident | seconds | of CPU |\n| --- | --- | --- | --- | --- |")
    for row in rows(options.only, places):
        print(row, flush=True)


if __name__ == "__main__":
    main()
