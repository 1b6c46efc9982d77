"""Hostile models, made here, through the commands: one line that names the file, and nothing is written.

Each is the smallest of its class; the parts that refuse them have tests of their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import model_files
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxprune_cli.main import execute

Change = Callable[[onnx.ModelProto, Path], object]


def mlp() -> onnx.ModelProto:
    """x @ w0 @ w1, whose inner channels can be pruned."""
    proto = model_files.mlp(2, 32)
    proto.graph.node.insert(1, helper.make_node("Relu", ["h0"], ["r0"], name="act"))
    proto.graph.node[2].input[0] = "r0"
    return proto


def add(proto: onnx.ModelProto, *nodes: onnx.NodeProto, **numbers: object) -> None:
    proto.graph.node.extend(nodes)
    for name, array in numbers.items():
        proto.graph.initializer.append(model_files.tensor(name, np.asarray(array)))


def node(operator: str, inputs: list[str], outputs: list[str], **more: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, **more)


def set_dims(proto: onnx.ModelProto, *dims: int) -> None:
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)


def external(proto: onnx.ModelProto, folder: Path, location: str, **more: object) -> None:
    (folder / "w.bin").write_bytes(bytes(32 * 32 * 4))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    model_files.refer(tensor, location=location, **more)


def hard_link(proto: onnx.ModelProto, folder: Path) -> None:
    external(proto, folder, "linked.bin")
    os.link(folder / "w.bin", folder / "linked.bin")


def way_out(proto: onnx.ModelProto, folder: Path) -> None:
    external(proto, folder, "out.bin")
    (folder / "out.bin").symlink_to("/etc/hostname")


def fifo(proto: onnx.ModelProto, folder: Path) -> None:
    external(proto, folder, "pipe")
    os.mkfifo(folder / "pipe")


def laughs(proto: onnx.ModelProto, _: Path) -> None:
    """Ten calls in each of eight functions."""
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    for level in range(8):
        operator, domain = (f"F{level + 1}", "f") if level < 7 else ("Relu", "")
        calls = [node(operator, [f"v{i}"], [f"v{i + 1}"], domain=domain) for i in range(10)]
        proto.functions.append(helper.make_function("f", f"F{level}", ["v0"], ["v10"], calls, opsets))
    proto.opset_import.add(domain="f", version=1)
    add(proto, node("F0", ["x"], ["called"], domain="f"))


def circle(proto: onnx.ModelProto, _: Path) -> None:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    body = [node("F", ["a"], ["b"], domain="f")]
    proto.functions.append(helper.make_function("f", "F", ["a"], ["b"], body, opsets))
    proto.opset_import.add(domain="f", version=1)
    add(proto, node("F", ["x"], ["called"], domain="f"))


def sparse(proto: onnx.ModelProto, _: Path) -> None:
    made = proto.graph.sparse_initializer.add(dims=[1 << 31, 1 << 31])
    made.values.CopyFrom(model_files.tensor("s", np.ones(1, np.float32)))
    made.indices.CopyFrom(model_files.tensor("", np.zeros(1, np.int64)))


def nan(proto: onnx.ModelProto, _: Path) -> None:
    odd = model_files.random(32, 32)
    odd[3, 4] = np.nan
    proto.graph.initializer[0].raw_data = odd.tobytes()


REFUSED: dict[str, tuple[Change, str]] = {
    "dims": (lambda p, _: set_dims(p, 1 << 31, 1 << 31), "impossible dimensions"),
    "negative": (lambda p, _: set_dims(p, -32, -32), "negative dimension"),
    "short": (lambda p, _: set_dims(p, 33, 32), "has 4096 bytes"),
    "rank": (lambda p, _: set_dims(p, *[1] * 65), "65 axes"),
    "absolute": (lambda p, f: external(p, f, "/etc/passwd"), "an absolute path"),
    "dotdot": (lambda p, f: external(p, f, "../w.bin"), "a path with '..'"),
    "address": (lambda p, f: external(p, f, "*/_ORT_MEM_ADDR_/*", offset=4096), "a memory address"),
    "beyond": (lambda p, f: external(p, f, "w.bin", offset=4), "ends at byte 4100"),
    "claims": (lambda p, f: external(p, f, "w.bin", length=1 << 50), "claims"),
    "hard link": (hard_link, "2 names"),
    "symbolic link": (way_out, "through a link"),
    "fifo": (fifo, "not a regular file"),
    "escape": (lambda p, f: external(p, f, "\x1b[2Jw"), r"\x1b[2Jw"),
    "laughs": (laughs, "grows to 100000003 nodes"),
    "circle": (circle, "circle"),
    "sparse": (sparse, "impossible dimensions"),
    "no summand": (lambda p, _: add(p, node("Sum", ["x", ""], ["s"])), "leaves out its input 1"),
    "no range": (
        lambda p, _: add(p, node("RandomNormalLike", ["x"], ["s"], scale=-1.0)),
        "deviation -1.0",
    ),
    "no operator": (lambda p, _: add(p, node("Evil\x1b[31m\n::error::x", ["x"], ["s"])), "does not have"),
    "types": (lambda p, _: add(p, node("Not", ["x"], ["s"])), "ONNX Runtime can"),
    "outside": (
        lambda p, _: add(p, node("Gather", ["w0", "i"], ["s"]), i=np.array([99])),
        "has the index 99",
    ),
}

COMMANDS = {
    "inspect": ["inspect", "{model}"],
    "prune": ["prune", "{model}", "-o", "{out}", "--amount", "0.5"],
    "zeros": ["prune", "{model}", "-o", "{out}", "--amount", "0.5", "--pattern", "unstructured"],
    "quantize": ["quantize", "{model}", "-o", "{out}", "--form", "dynamic"],
    "verify": ["verify", "{model}"],
}

#: What only an analysis of sizes or a run shows: commands that need neither may take such models.
UNSEEN = {("outside", "quantize"), ("outside", "zeros"), ("outside", "verify")}


def ran(
    folder: Path, change: Change, command: str, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, list[str]]:
    """Run a command on a changed model; return its status, what it said on stderr, and new files."""
    proto = mlp()
    change(proto, folder)
    model_files.write(proto, folder / "hostile.onnx")
    before = sorted(folder.rglob("*"))
    places = {"{model}": str(folder / "hostile.onnx"), "{out}": str(folder / "out.onnx")}
    capsys.readouterr()
    status = execute([places.get(word, word) for word in COMMANDS[command]])
    new = [path.name for path in sorted(folder.rglob("*")) if path not in before]
    return status, capsys.readouterr().err, new


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("case", REFUSED)
def test_one_line_and_nothing_else(
    tmp_path: Path, case: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change, reason = REFUSED[case]
    if (case, command) in UNSEEN:
        pytest.skip("is seen by ONNX Runtime alone, when it runs")
    status, said, new = ran(tmp_path, change, command, capsys)
    assert status == 1
    assert new == []
    lines = [line for line in said.splitlines() if not line.startswith("info: ")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert "hostile.onnx" in lines[0]
    assert reason in lines[0]
    assert lines[0].isprintable()


def test_a_run_without_an_end_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(proto: onnx.ModelProto, _: Path) -> None:
        names = [("i", TensorProto.INT64, []), ("c", TensorProto.BOOL, []), ("s", TensorProto.FLOAT, [1])]
        ins = [helper.make_tensor_value_info(*one) for one in names]
        outs = [helper.make_tensor_value_info(f"{name}o", kind, dims) for name, kind, dims in names[1:]]
        body = [node("Identity", ["c"], ["co"]), node("Add", ["s", "s"], ["so"])]
        loop = node("Loop", ["n", "", "one"], ["y"], body=helper.make_graph(body, "b", ins, outs))
        add(proto, loop, n=np.int64(1 << 62), one=np.ones(1, np.float32))
        proto.graph.output.append(model_files.info("y", 1))

    monkeypatch.setenv("ONNXPRUNE_RUN_SECONDS", "0.5")
    status, said, _ = ran(tmp_path, change, "verify", capsys)
    assert status == 1
    assert "a run took longer than" in said


def test_weights_that_are_not_finite_are_told_to_who_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = "weight 'w0' at [3, 4] is nan"
    for command in ("prune", "zeros", "quantize"):
        status, said, new = ran(tmp_path, nan, command, capsys)
        assert (status, new) == (1, [])
        assert problem in said
    assert execute(["inspect", str(tmp_path / "hostile.onnx"), "--verbose"]) == 0
    assert "weight 'w0' at [3, 4] is nan" in " ".join(capsys.readouterr().out.split())


BOMBS: dict[str, Change] = {
    "filled": lambda p, _: add(
        p, node("ConstantOfShape", ["s"], ["b"]), node("ReduceSum", ["b"], ["c"], keepdims=0), s=[1 << 36]
    ),
    "expanded": lambda p, _: add(p, node("Expand", ["x", "s"], ["b"]), s=np.array([1 << 36, 1, 32])),
    "counted": lambda p, _: add(
        p, node("Range", ["a", "b", "c"], ["r"]), a=np.int64(0), b=np.int64(1 << 40), c=np.int64(1)
    ),
    "doubled": lambda p, _: add(
        p,
        *(node("Concat", [f"d{n}", f"d{n}"], [f"d{n + 1}"], axis=0) for n in range(40)),
        node("ReduceSum", ["d40"], ["s"], keepdims=0),
        d0=np.ones(1, np.float32),
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_what_a_few_numbers_ask_for_is_not_computed(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said, _ = ran(tmp_path, BOMBS[case], "inspect", capsys)
    assert (status, said.replace("info: ", "")[:6]) == (0, "")


def test_a_large_batch_is_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(proto: onnx.ModelProto, _: Path) -> None:
        proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 40

    for command, expected in (("prune", 4), ("verify", 1)):  # nothing of such a model can be followed
        status, said, new = ran(tmp_path, change, command, capsys)
        assert (status, new) == (expected, [])
        assert "hostile.onnx" in said


def test_tensors_hidden_in_attributes_are_confined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(proto: onnx.ModelProto, _: Path) -> None:
        bad = TensorProto(name="bad", data_type=TensorProto.FLOAT, dims=[4])
        model_files.refer(bad, location="/etc/passwd", offset=0, length=16)
        add(proto, node("Constant", [], ["hidden"], value=bad))

    for command in COMMANDS:
        status, said, new = ran(tmp_path, change, command, capsys)
        assert (status, new) == (1, [])
        assert "an absolute path" in said
