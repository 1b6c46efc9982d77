"""Peak memory and time of commands on models larger than memory, beside a plain copy of the same bytes.

    python benchmarks/streaming_memory.py [--gigabytes 0.1 1] [--commands inspect verify] [--sparse]

Writes a chain of square float32 products (64 MiB each by default), lets each command work on it in a process
of its own, and prints a row for each:

- ``peak``: the most resident memory of any process of the command (the system's own mark; pages of mapped
  files count), and of all of them together (seen every 10 ms);
- ``own``: the most of it that is not pages of files;
- ``time``: of the whole command, which loads, writes, flushes, reloads, runs and compares;
- at the end, what `onnxprune.prune` takes (read, hash, choose) and what `onnxprune.save` takes, which masks
  (read again, mask, write, flush), both as ratios to a copy of the same bytes with the same flush between
  them, the medians of several.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models import write_linear_chain

#: What is measured, by the name that --commands takes; {m}: the model, {o}: an output, {p}: a pruned model.
COMMANDS = {
    "inspect": "inspect {m}",
    "prune:2:4": "prune {m} -o {o} --pattern 2:4",
    "prune:unstructured": "prune {m} -o {o} --pattern unstructured --amount 0.5",
    "prune:global": "prune {m} -o {o} --pattern unstructured --amount 0.5 --scope global",
    "prune:block:4x4": "prune {m} -o {o} --pattern block:4x4 --amount 0.5",
    "verify": "verify {p} --against {m} --plan {p}.plan",
    "apply": "apply {p}.plan {m} -o {o}",
    "quantize:int4": "quantize {m} -o {o} --form int4",
    "quantize:float16": "quantize {m} -o {o} --form float16",
    "quantize:int8": "quantize {m} -o {o} --form int8 --computing float",
    "quantize:dynamic": "quantize {m} -o {o} --form dynamic",
}

_PASS = """
import sys, time
from pathlib import Path
import onnxprune
import streaming_memory
tools = onnxprune.load, onnxprune.prune, onnxprune.save  # which imports what they need
model, output = Path(sys.argv[1]), Path(sys.argv[2])
started = time.perf_counter()
loaded = onnxprune.load(model)
result = onnxprune.prune(loaded, pattern=sys.argv[3], amount=float(sys.argv[4]) if sys.argv[4] else None)
choosing = time.perf_counter() - started
for _ in range(2):  # the second finds memory for pages as the masking does: what was just given back
    copying = streaming_memory.copy(Path(f"{model}.data"), output)
    output.unlink()
started = time.perf_counter()
onnxprune.save(result.model, output)
print(choosing, time.perf_counter() - started, copying)
"""

_PIECE_BYTES = 1 << 22


@dataclass(slots=True)
class Peak:
    """What a command took: bytes, and seconds."""

    one: int = 0
    together: int = 0
    own: int = 0
    seconds: float = 0.0
    status: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.1, 1])
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--width", type=int, default=4096, help="of the square weights")
    parser.add_argument(
        "--passes", type=int, default=3, help="pairs of a copy and a masking pass; 0 for none"
    )
    parser.add_argument("--sparse", action="store_true", help="weights are holes but for their first rows")
    parser.add_argument("--folder", type=Path, help="where the models are made (three times their size)")
    options = parser.parse_args()
    print("| weights | command | peak MB | together MB | own MB | seconds | status |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for gigabytes in options.gigabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            measure(Path(name), gigabytes, options)


def measure(folder: Path, gigabytes: float, options: argparse.Namespace) -> None:
    """Print the rows for one size."""
    model, output, pruned = (folder / f"{name}.onnx" for name in ("model", "output", "pruned"))
    layers = max(1, round(gigabytes * 1e9 / (4 * options.width**2)))
    size = write_linear_chain(model, layers, options.width, alike=True, sparse=options.sparse)
    label = f"{size / 1e9:.1f} GB"
    if {"verify", "apply"} & set(options.commands):
        row(label, "prune:2:4 --plan", run(f"prune {model} -o {pruned} --pattern 2:4 --plan {pruned}.plan"))
    for name in options.commands:
        row(label, name, run(COMMANDS[name].format(m=model, o=output, p=pruned)))
        remove(folder, "output.onnx*")
    remove(folder, "pruned.onnx*")
    for pattern, amount in (("2:4", ""), ("unstructured", "0.5")):
        ratios = list(passes(model, output, pattern, amount, options.passes))
        if ratios:
            times = ", ".join("/".join(f"{seconds:.1f}" for seconds in each) for each in ratios)
            choosing = statistics.median(choosing / copy for choosing, _, copy in ratios)
            masking = statistics.median(masking / copy for _, masking, copy in ratios)
            ratios_text = f"choosing {choosing:.2f}, masking {masking:.2f} of a copy ({times} s)"
            print(f"| {label} | {pattern}: {ratios_text}", flush=True)


def row(label: str, name: str, peak: Peak) -> None:
    numbers = (f"{count / 1e6:.0f}" for count in (peak.one, peak.together, peak.own))
    print(f"| {label} | {name} | {' | '.join(numbers)} | {peak.seconds:.0f} | {peak.status} |", flush=True)


def run(command: str) -> Peak:
    """Run a command, and watch the memory of it and of all processes that it starts."""
    peak, done = Peak(), threading.Event()
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "onnxprune_cli", *command.split()],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )

    def watch() -> None:
        while not done.wait(0.01):
            seen = [memory(number) for number in descendants(process.pid)]
            peak.together = max(peak.together, sum(resident for resident, _ in seen))
            peak.own = max([peak.own, *(own for _, own in seen)])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    complaint = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    done.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    peak.one, peak.seconds, peak.status = (
        usage.ru_maxrss * 1024,
        time.perf_counter() - started,
        process.returncode,
    )
    if process.returncode:
        print(complaint.decode(errors="replace"), file=sys.stderr)
    return peak


def memory(process: int) -> tuple[int, int]:
    """Return the resident bytes of a process, and those that are not pages of files."""
    try:
        fields = dict(
            line.split(":", 1)
            for line in Path(f"/proc/{process}/status").read_text().splitlines()
            if ":" in line
        )
        return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))  # type: ignore
    except (OSError, KeyError, ValueError):
        return 0, 0  # it has ended


def descendants(process: int) -> Iterator[int]:
    yield process
    try:
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from descendants(int(child))
    except OSError:
        return


def passes(
    model: Path, output: Path, pattern: str, amount: str, count: int
) -> Iterator[tuple[float, float, float]]:
    """Yield the seconds of choosing, of masking, and of a copy between them, each in a new process."""
    for _ in range(count):
        command = [sys.executable, "-c", _PASS, str(model), str(output), pattern, amount]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent)
        remove(output.parent, "output.onnx*")
        choosing, masking, copied = map(float, done.stdout.split())
        yield choosing, masking, copied


def copy(source: Path, target: Path) -> float:
    """Copy a file piece by piece, flush it and its folder, and return the seconds."""
    started = time.perf_counter()
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while piece := reader.read(_PIECE_BYTES):
            writer.write(piece)
        os.fsync(writer.fileno())
    folder = os.open(target.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    return time.perf_counter() - started


def remove(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
