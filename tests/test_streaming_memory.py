"""Commands on models larger than what they may keep in memory: bounds that child processes hold, and laws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune.model import external, parse, streaming
from onnxprune.model.io import load, save
from onnxprune.verification import verify

#: What a command needs whatever the model: Python and its libraries, pages of files, a few pieces.
BASE_BYTES = 400_000_000

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads what Linux counts")


def write_chain(path: Path, layers: int, width: int) -> int:
    """Write square products whose weights are holes in a file but for their first rows; return the bytes."""
    generator = np.random.default_rng(0)
    size = 4 * width * width
    nodes, tensors, value = [], [], "x"
    with Path(f"{path}.data").open("wb") as data:
        for layer in range(layers):
            data.seek(layer * size)
            data.write(generator.standard_normal((16, width), dtype=np.float32).tobytes())
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=(width, width))
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": f"{path.name}.data", "offset": layer * size, "length": size}
            for key, entry in place.items():
                tensor.external_data.add(key=key, value=str(entry))
            tensors.append(tensor)
            result = "y" if layer == layers - 1 else f"h{layer}"
            nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [result], f"layer{layer}"))
            value = result
        data.truncate(layers * size)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width]) for name in "xy"]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(proto.SerializeToString())
    return layers * size


#: The system counts the memory of who starts a process as that of the process, until it is another program.
_SMALL_PARENT = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:])
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak_of(*command: str) -> int:
    """Run a command; return the most resident bytes of any of its processes, pages of files among them."""
    started = [sys.executable, "-m", "onnxprune_cli", *command, "-q"]
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_PARENT, *started], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout) * 1024


@linux
def test_a_command_needs_no_more_memory_for_a_larger_model(tmp_path: Path) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    size = write_chain(model, layers=30, width=2048)
    assert size > BASE_BYTES
    bound = BASE_BYTES + 3 * size // 30
    assert peak_of("prune", str(model), "-o", str(out), "--pattern", "2:4") < bound


@linux
@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        "inspect {m}",
        "prune {m} -o {o} --pattern unstructured --amount 0.5 --scope global",
        "prune {m} -o {o} --pattern block:4x4 --amount 0.5",
        "quantize {m} -o {o} --form int4",
        "quantize {m} -o {o} --form float16",
        "quantize {m} -o {o} --form int8 --computing float",
    ],
)
def test_no_streaming_command_needs_more_memory_for_a_larger_model(tmp_path: Path, command: str) -> None:
    model, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    size = write_chain(model, layers=60, width=2048)
    assert peak_of(*command.format(m=model, o=out).split()) < BASE_BYTES + 5 * size // 60


@linux
@pytest.mark.long
def test_more_weights_than_protobuf_holds(tmp_path: Path) -> None:
    model, out, plan = (str(tmp_path / name) for name in ("model.onnx", "out.onnx", "out.plan"))
    size = write_chain(Path(model), layers=9, width=8192)
    assert size > 1 << 31
    bound = BASE_BYTES + 2 * size // 9
    assert peak_of("prune", model, "-o", out, "--pattern", "2:4", "--plan", plan) < bound
    assert peak_of("verify", out, "--against", model, "--plan", plan) < bound
    assert peak_of("apply", plan, model, "-o", str(tmp_path / "again.onnx")) < bound
    datas = [next(tmp_path.glob(f"{name}.onnx.*.data")) for name in ("out", "again")]
    assert datas[0].name.split(".")[2] == datas[1].name.split(".")[2]  # a digest of the contents


# --- laws ------------------------------------------------------------------------------------------------


def small_model(path: Path, *, external_data: bool, dtype: Any = np.float32) -> Path:
    generator = np.random.default_rng(3)
    shapes = {"a": (36, 52), "b": (52, 24), "c": (40, 24, 3, 3), "d": (24, 12, 1, 1)}
    arrays = {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["i"], "second"),
        helper.make_node("Reshape", ["i", "shape"], ["j"], "reshape"),
        helper.make_node("Conv", ["j", "c"], ["k"], "third", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["k", "e"], ["y"], "fourth", group=2),
    ]
    arrays["e"] = generator.standard_normal((6, 20, 1, 1)).astype(dtype)
    del arrays["d"]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, [5, 36])],
        [helper.make_tensor_value_info("y", element, [5, 6, 1, 1])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        + [onnx.numpy_helper.from_array(np.int64([5, 24, 1, 1]), "shape")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, path.with_suffix(".plain"))
    save(load(path.with_suffix(".plain")), path, external_data=external_data)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {
        name: value.const_value.tobytes()
        for name, value in load(path).graph.initializers.items()
        if value.const_value is not None
    }


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize(
    ("pattern", "options"),
    [
        ("2:4", {}),
        ("3:4", {"score": "random"}),
        ("unstructured", {"amount": 0.37}),
        ("unstructured", {"amount": 0.37, "scope": "global", "score": "lamp"}),
        ("block:4x3", {"amount": 0.4}),
        ("block:3x5", {"amount": 0.4, "scope": "global", "score": "l1"}),
    ],
)
def test_what_is_streamed_is_what_is_made_in_memory(
    tmp_path: Path, pattern: str, options: dict[str, Any], dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inline = small_model(tmp_path / "inline.onnx", external_data=False, dtype=dtype)
    beside = small_model(tmp_path / "beside.onnx", external_data=True, dtype=dtype)
    save(onnxprune.prune(load(inline), pattern=pattern, **options).model, tmp_path / "a.onnx")
    for module in (external, streaming):
        monkeypatch.setattr(module, "PIECE_BYTES", 1 << 10)
    result = onnxprune.prune(load(beside), pattern=pattern, **options)
    save(result.model, tmp_path / "b.onnx")
    assert contents(tmp_path / "a.onnx") == contents(tmp_path / "b.onnx")
    failed = [
        check
        for check in verify(tmp_path / "b.onnx", against=beside, plan=result.plan).checks
        if not check.passed
    ]
    # ONNX Runtime has no convolution of float64, whatever the weights
    assert all(dtype is np.float64 and "Conv" in check.detail for check in failed), failed


def test_large_weights_stay_in_a_large_model_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_model(tmp_path / "model.onnx", external_data=False)
    expected = contents(path)
    save(onnxprune.prune(load(path), pattern="2:4").model, tmp_path / "a.onnx")
    monkeypatch.setattr(parse, "_LARGE_MODEL_BYTES", 1 << 10)
    monkeypatch.setattr(parse, "_LEFT_BYTES", 1 << 10)
    model = load(path)
    kinds = {type(value.const_value) for value in model.graph.initializers.values()}
    assert external.FileTensor in kinds
    assert contents(path) == expected
    save(onnxprune.prune(model, pattern="2:4").model, tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()  # inline, as it was


def test_a_large_inline_model_is_verified_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.verification import report, running

    path = small_model(tmp_path / "model.onnx", external_data=False)
    result = onnxprune.prune(load(path), pattern="2:4")
    save(result.model, tmp_path / "out.onnx")
    for module, name in (
        (report, "_INLINE_BYTES"),
        (report, "LARGE_BYTES"),
        (running, "LARGE_BYTES"),
        (running, "_ONE_RUN_BYTES"),
    ):
        monkeypatch.setattr(module, name, 1)
    found = verify(tmp_path / "out.onnx", against=path, plan=result.plan)
    assert found.passed, found.checks
    details = {check.name: check.detail for check in found.checks}
    assert "weights read in place; not on more" in details["outputs finite"]
    assert "without folded constants" in details["zeros survive ONNX Runtime"]
    assert [skipped.name for skipped in found.skipped] == ["weights in the file itself"]


def test_bfloat16_is_run_in_float32_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ml_dtypes

    from onnxprune.verification import running

    path = small_model(tmp_path / "model.onnx", external_data=True, dtype=ml_dtypes.bfloat16)
    monkeypatch.setattr(running, "LARGE_BYTES", 1)
    found = verify(path)
    details = {check.name: check.detail for check in found.checks}
    assert (
        "in float32: ONNX Runtime lacks its kernels, with the graph as it stands" in details["outputs finite"]
    )
