"""Command lines from Python: what a crash does to them, and how errors come back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import contained
from onnxprune.errors import LimitMissed, ModelError, NothingToPrune, RuntimeFailure, UsageError


def write_model(path, *nodes, weights=(("w", (8, 8)),), output=(2, 8)):
    """Write a model from x of shape (2, 8) to y."""
    seed = np.random.default_rng(0)
    tensors = [
        numpy_helper.from_array(seed.normal(size=shape).astype(np.float32), name) for name, shape in weights
    ]
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(output))],
        tensors,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def two_layers(path):
    return write_model(
        path,
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
        weights=(("w", (8, 16)), ("v", (16, 8))),
    )


def crashing(path):
    """A model that passes every check, and that ONNX Runtime dereferences a null pointer for."""
    return write_model(
        path, helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Sum", ["a", ""], ["y"])
    )


def test_a_command_gives_its_document(tmp_path):
    out = tmp_path / "out.onnx"
    document = contained(["prune", two_layers(tmp_path / "m.onnx"), "-o", out, "--amount", "0.5"])
    assert document["command"] == "prune"
    assert out.is_file()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["inspect", "missing.onnx"], ModelError, "missing.onnx"),
        (["prune", "m.onnx", "-o", "o.onnx", "--amount", "2"], UsageError, "--amount"),
    ],
)
def test_errors_come_back_as_what_they_are(tmp_path, monkeypatch, arguments, error, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words):
        contained(arguments)


def test_reasons_come_back_too(tmp_path):
    path = write_model(tmp_path / "m.onnx", helper.make_node("MatMul", ["x", "w"], ["y"]))
    with pytest.raises(NothingToPrune) as caught:
        contained(["prune", path, "-o", tmp_path / "o.onnx", "--amount", "0.5"])
    assert caught.value.reasons == ("w: output y of the model",)


def test_time_is_limited(tmp_path):
    with pytest.raises(LimitMissed, match=r"m\.onnx: took longer than --timeout allows"):
        contained(["inspect", two_layers(tmp_path / "m.onnx")], timeout=0.05)


def test_a_crash_is_an_error_and_leaves_no_output(tmp_path, monkeypatch):
    """Whether or not the model is refused before it is run, it must not be believed to work."""
    path = crashing(tmp_path / "m.onnx")
    arguments = ["prune", path, "-o", tmp_path / "o.onnx", "--pattern", "unstructured", "--amount", "0.5"]
    with pytest.raises((RuntimeFailure, ModelError), match=r"m\.onnx"):
        contained(arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
