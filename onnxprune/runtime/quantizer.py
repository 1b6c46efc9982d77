"""ONNX Runtime's own quantization tools, in a process of their own.

So they can be stopped when the time is over, and what they print and what they patch stays there.
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

from onnxprune.containment import describe_crash
from onnxprune.errors import RuntimeFailure
from onnxprune.messages import one_line

Feeds = Mapping[str, npt.NDArray[Any]]

#: How ranges of activations are found, by the names that users type; the values are ONNX Runtime's.
CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}

#: protobuf ends here: larger models keep their weights in a second file.
_ONE_FILE_BYTES = 1 << 31


def quantize_static(
    model_path: str | Path,
    feeds: Sequence[Feeds],
    out_path: str | Path,
    *,
    nodes: Sequence[str] = (),
    calibration: str = "minmax",
    per_channel: bool = True,
    reduced_range: bool = False,
    ranges: str | Path | None = None,
    timeout_seconds: float | None = None,
) -> None:
    """Write a model in QDQ form: activations in 8 bits with a zero point, symmetric int8 weights.

    Args:
        model_path: a file whose batch norms are folded and whose nodes have names.
        feeds: inputs to take the ranges of activations from.
        out_path: the new file; one that exceeds 2 GiB gets a second file for its weights.
        nodes: names of the nodes to quantize; all that ONNX Runtime can quantize if empty.
        calibration: a key of `CALIBRATIONS`: the least and the greatest value, all but the outermost of them,
            or the range that loses the least information.
        per_channel: a scale for each output channel of a weight, not one for all.
        reduced_range: weights in 7 bits, for processors whose 8-bit products can saturate.
        ranges: a file that keeps the ranges of activations for a second run; written if it is not there.
        timeout_seconds: after which the work is stopped; None for no limit.

    Raises:
        RuntimeFailure: ONNX Runtime can't quantize the model, or it takes too long.
    """
    options = {
        "nodes": list(nodes), "calibration": CALIBRATIONS[calibration], "per_channel": per_channel,
        "reduced": reduced_range,
        "ranges": None if ranges is None else str(ranges),
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="onnxprune-quantize-") as folder:
        arrays = Path(folder, "feeds.npz")
        names = list(feeds[0])
        packed = {
            f"{run}_{place}": each[name] for run, each in enumerate(feeds) for place, name in enumerate(names)
        }
        np.savez(arrays, **packed)  # type: ignore[arg-type] # its stub takes allow_pickle for one of the arrays
        options |= {"feeds": str(arrays), "names": names, "runs": len(feeds)}
        _run("static", model_path, out_path, options, timeout_seconds)


def convert_float16(
    model_path: str | Path,
    out_path: str | Path,
    *,
    keep_float: Sequence[str],
    timeout_seconds: float | None = None,
) -> None:
    """Write the graph of a model that computes in float16; its inputs and outputs keep their types.

    Args:
        model_path: a file whose nodes have names and whose large weights are not there (`model.skeleton`):
            those that have the type float16 afterwards are to be converted.
        out_path: the new file.
        keep_float: names of nodes that stay in float32.
        timeout_seconds: after which the work is stopped; None for no limit.

    Raises:
        RuntimeFailure: ONNX Runtime's converter can't convert the model, or it takes too long.
    """
    _run("float16", model_path, out_path, {"keep_float": list(keep_float)}, timeout_seconds)


def _run(
    kind: str,
    model_path: str | Path,
    out_path: str | Path,
    options: Mapping[str, Any],
    timeout_seconds: float | None,
) -> None:
    """Let the other process do one task."""
    # from the folder that holds the package: with -m, Python looks for modules in the current folder first
    package_folder = Path(__file__).resolve().parents[2]
    source = Path(model_path).resolve()
    size = sum(file.stat().st_size for file in source.parent.glob(f"{source.name}*"))
    out = str(Path(out_path).resolve())
    task = {"kind": kind, "model": str(source), "out": out, "large": size >= _ONE_FILE_BYTES, **options}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune.runtime.quantizer_process"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=None if timeout_seconds is None else max(timeout_seconds, 0.1),
            cwd=package_folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFailure(f"quantizing takes more than {timeout_seconds:.0f} s") from None
    if done.returncode < 0:
        why = describe_crash(-done.returncode, done.stderr)
        raise RuntimeFailure(f"while the model was quantized or its result opened, {why}")
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeFailure(f"ONNX Runtime can't quantize the model: {one_line(last)}")
