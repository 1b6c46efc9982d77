"""Resident memory of calibration, in a process of its own, on activations of twenty times the limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

LIMIT_BYTES = 32 << 20
LAYERS, CHANNELS, SIZE, SAMPLES = 21, 16, 128, 32

#: The baseline is the same work on a single sample, so that libraries, weights and a session count there.
WORK = """
import json, resource, sys
from pathlib import Path

import numpy as np
import onnxprune
from onnxprune.calibration.activations import each_batch, mean_squares
from onnxprune.data import Dataset
from onnxprune.calibration.moments import collect_moments
from onnxprune.ops.linear import find_linear

path, what, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
model, everything = onnxprune.load(path), onnxprune.load_data(Path(path).with_suffix(".npz"))
linears, _ = find_linear(model)
names = [str(linear.x.name) for linear in linears]


def work(data, **options):
    if what == "collect_moments":
        found = collect_moments(model, linears, data, max_rows=None, **options)
        return sum(moments.count for _, moments in found)
    if what == "mean_squares":
        return len(mean_squares(model, [(name, (0, 2, 3)) for name in names], data, **options))
    bundles = [(name,) for name in names]
    return sum(tapped.values[0].size for tapped in each_batch(model, bundles, data, **options))


def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


one = {name: array[:1] for name, array in everything.arrays.items()}
work(Dataset.from_arrays(one), limit_bytes=limit)
before = peak()
count = work(everything, limit_bytes=limit)
print(json.dumps({"grown_bytes": peak() - before, "count": count}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return convolutions one after the other, each with an input of 1 MiB for a sample."""
    generator = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for number in range(LAYERS):
        w = generator.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 12
        weights.append(numpy_helper.from_array(w, f"w{number}"))
        nodes.append(
            helper.make_node("Conv", [value, f"w{number}"], [f"c{number}"], f"conv{number}", pads=[1] * 4)
        )
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"], f"relu{number}"))
        value = f"r{number}"
    nodes.append(helper.make_node("GlobalAveragePool", [value], ["y"], "pool"))
    shape = ["n", CHANNELS, SIZE, SIZE]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CHANNELS, 1, 1])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    onnx.save(proto, path)
    x = generator.standard_normal((SAMPLES, CHANNELS, SIZE, SIZE)).astype(np.float32)
    np.savez(path.with_suffix(".npz"), x=x)
    return path


def grown(path: Path, what: str, limit_bytes: int) -> tuple[int, int]:
    """Return by how many bytes the peak grows from one sample to all of them, and what was counted."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(path), what, str(limit_bytes)],
        capture_output=True,
        text=True,
        check=True,
        # without this, the C library keeps memory that was given back in several pools
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    report = json.loads(done.stdout)
    return report["grown_bytes"], report["count"]


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("what", ["collect_moments", "mean_squares", "each_batch"])
def test_memory_stays_under_a_limit_that_activations_exceed_twenty_fold(model: Path, what: str) -> None:
    activations_bytes = LAYERS * SAMPLES * CHANNELS * SIZE * SIZE * 4
    assert activations_bytes >= 20 * LIMIT_BYTES
    bounded, count = grown(model, what, LIMIT_BYTES)
    assert bounded <= LIMIT_BYTES
    free, same = grown(model, what, 1 << 40)
    assert same == count
    assert free > 2 * LIMIT_BYTES  # so a limit that is not kept is seen
