"""Resident memory while a model with external data, larger than that memory, is pruned by magnitude.

    python benchmarks/streaming_memory.py [--layers 32] [--width 4096] [--scope uniform]

Writes a chain of square float32 matrix products (2 GiB by default) into a temporary folder, prunes half of
its weights in a process of its own, and prints the peak of its resident memory. A plain copy of the data is
timed beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models import write_linear_chain

WORK = """
import json, resource, sys, time
import onnxprune

started = time.perf_counter()
model = onnxprune.load(sys.argv[1])
result = onnxprune.prune(model, pattern="unstructured", amount=0.5, scope=sys.argv[3])
onnxprune.save(result.model, sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"peak_bytes": peak, "seconds": time.perf_counter() - started}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--scope", choices=["uniform", "global"], default="uniform")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_linear_chain(folder / "big.onnx", options.layers, options.width)
        started = time.perf_counter()
        shutil.copyfile(folder / "big.onnx.data", folder / "copy.data")
        copied = time.perf_counter() - started
        (folder / "copy.data").unlink()
        command = [
            sys.executable,
            "-c",
            WORK,
            str(folder / "big.onnx"),
            str(folder / "small.onnx"),
            options.scope,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        report = json.loads(done.stdout)
    print(f"weights          {size / 2**20:8.0f} MiB")
    print(f"peak resident    {report['peak_bytes'] / 2**20:8.0f} MiB")
    print(f"prune            {report['seconds']:8.1f} s")
    print(f"plain copy       {copied:8.1f} s")


if __name__ == "__main__":
    main()
