"""A model in eight bits, as ONNX Runtime's own static quantization makes it: to see what that would bring.

It runs in a process of its own, so that it can be stopped when the time is over, and so that what it prints
and what it patches stays there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import RuntimeFailure
from onnxprune.messages import one_line
from onnxprune.runtime.optimized import save_optimized

Feeds = Mapping[str, npt.NDArray[Any]]

#: protobuf ends here: larger models keep their weights in a second file.
_ONE_FILE_BYTES = 1 << 31


def quantize(
    model: ir.Model | str | Path, feeds: Sequence[Feeds], out_path: str | Path, *, timeout_seconds: float
) -> None:
    """Write a model in QDQ form: int8 activations, and int8 weights with a scale for each output channel.

    Batch norms are folded into convolutions before, as ONNX Runtime's documentation asks. Ranges of
    activations are the least and the greatest value that occur.

    Args:
        model: a path, or a model, which is not changed.
        feeds: inputs to take the ranges from.
        out_path: the new file.
        timeout_seconds: after which the work is stopped.

    Raises:
        RuntimeFailure: ONNX Runtime can't quantize the model, or it takes too long.
    """
    # from the folder that holds the package: with -m, Python looks for modules in the current folder first
    package_folder = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory(prefix="onnxprune-int8-") as folder:
        plain, arrays = Path(folder, "plain.onnx"), Path(folder, "feeds.npz")
        save_optimized(model, plain)
        names = list(feeds[0])
        packed = {
            f"{run}_{place}": each[name] for run, each in enumerate(feeds) for place, name in enumerate(names)
        }
        np.savez(arrays, **packed)  # type: ignore[arg-type] # its stub takes allow_pickle for one of the arrays
        size = sum(file.stat().st_size for file in Path(folder).glob("plain.onnx*"))
        task = {
            "model": str(plain), "out": str(Path(out_path).resolve()), "feeds": str(arrays), "names": names,
            "runs": len(feeds), "large": size > _ONE_FILE_BYTES,
        }  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-m", "onnxprune.runtime.int8_trial"],
                input=json.dumps(task),
                capture_output=True,
                text=True,
                timeout=max(timeout_seconds, 0.1),
                cwd=package_folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeFailure(f"quantizing takes more than {timeout_seconds:.0f} s") from None
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeFailure(f"ONNX Runtime can't quantize the model: {one_line(last)}")


def main() -> None:
    """Quantize in this process; the task comes as JSON on stdin."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    task = json.load(sys.stdin)

    class Reader(CalibrationDataReader):  # type: ignore[misc] # untyped
        def __init__(self) -> None:
            with np.load(task["feeds"], allow_pickle=False) as arrays:
                self._feeds = iter(
                    [
                        {name: arrays[f"{run}_{place}"] for place, name in enumerate(task["names"])}
                        for run in range(task["runs"])
                    ]
                )

        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            return next(self._feeds, None)

    quantize_static(
        task["model"], task["out"], Reader(), per_channel=True, use_external_data_format=task["large"]
    )


if __name__ == "__main__":
    main()
