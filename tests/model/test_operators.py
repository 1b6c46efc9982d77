"""Nodes that are not what their operators allow, one for each rule, and such that only look like it."""

from __future__ import annotations

import math
from pathlib import Path

import model_files
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.model.io import load


def read(folder: Path, *nodes: onnx.NodeProto, opset: int = 21, **weights: tuple[int, ...]) -> None:
    """Load a model that computes w0 first, then these nodes, whatever their types and shapes."""
    tensors = [model_files.tensor(name, model_files.random(*shape)) for name, shape in weights.items()]
    first = helper.make_node("Identity", ["x"], ["v"])
    graph = helper.make_graph(
        [first, *nodes],
        "g",
        [model_files.info("x", 1, 4, 8, 8)],
        [model_files.info("v", 1, 4, 8, 8)],
        tensors,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    proto.opset_import.add(domain="acme", version=1)
    proto.opset_import.add(domain="ai.onnx.ml", version=3)
    load(model_files.write(proto, folder / "m.onnx"))


def node(operator: str, inputs: list[str], outputs: int = 1, **attributes: object) -> onnx.NodeProto:
    names = [f"o{number}" for number in range(outputs)]
    return helper.make_node(operator, inputs, names, name="n", **attributes)


BODY = helper.make_graph([helper.make_node("Identity", ["x"], ["i"])], "b", [], [model_files.info("i", 1)])


def with_type(kind: int) -> onnx.NodeProto:
    made = node("Softmax", ["v"])
    made.attribute.add(name="axis", type=kind)
    return made


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (node("Reluu", ["v"]), "'Reluu', which opset 21 of ai.onnx does not have"),
        (node("Nope", ["v"], domain="ai.onnx.ml"), "'Nope', which opset 3 of ai.onnx.ml does not have"),
        (node("Swish", ["v"]), "opset 21 of ai.onnx does not have"),  # there is one from opset 24 on
        (node("MatMul", ["v"]), "has 1 inputs, which a MatMul never has"),
        (node("Relu", ["v", "v"]), "has 2 inputs, which a Relu never has"),
        (node("Relu", ["v"], 2), "has 2 outputs, which a Relu never has"),
        (node("Split", ["v"], 0), "has 0 outputs, which a Split never has"),
        (node("MatMul", ["v", ""]), "leaves out its input 1, which a MatMul needs"),
        (node("Sum", ["v", ""]), "leaves out its input 1, which a Sum needs"),
        (node("Max", ["", "v"]), "leaves out its input 0, which a Max needs"),
        (node("Relu", ["v"], alpha=1.0), "has the attribute 'alpha', which no Relu has"),
        (
            with_type(onnx.AttributeProto.FLOAT),
            "'axis' with a value of another type than a Softmax",
        ),
        (node("Concat", ["v", "v"]), "lacks the attribute 'axis', which a Concat needs"),
        (node("If", ["v"]), "lacks the attribute '(then|else)_branch', which a If needs"),
        (node("RandomNormalLike", ["v"], scale=0.0), "mean 0.0 and deviation 0.0"),
        (node("RandomNormalLike", ["v"], scale=-1.0), "deviation -1.0"),
        (node("RandomNormalLike", ["v"], scale=math.nan), "deviation nan"),
        (node("RandomNormal", [], shape=[2], mean=math.inf), "mean inf"),
        (node("RandomUniformLike", ["v"], low=5.0), "between 5.0 and 1.0"),
        (node("RandomUniform", [], shape=[2], high=math.inf), "between 0.0 and inf"),
    ],
    ids=lambda value: value.op_type if isinstance(value, onnx.NodeProto) else "",
)
def test_a_node_that_its_operator_does_not_allow(
    tmp_path: Path, made: onnx.NodeProto, complaint: str
) -> None:
    with pytest.raises(ModelError, match=complaint) as caught:
        read(tmp_path, made)
    assert "m.onnx: node 'n' " in str(caught.value)


@pytest.mark.parametrize(
    "made",
    [
        node("Clip", ["v", "", "w"]),
        node("Split", ["v"], 2, num_outputs=2),
        node("Loop", ["", "", "v", ""], 2, body=BODY),
        node("Anything", ["v", ""], 3, domain="acme", whatever=1),
        node("SimplifiedLayerNormalization", ["v", "w"], epsilon=1e-5),
        node("Softmax", ["v"], __hint=1),
        node("RandomUniformLike", ["v"], low=2.0, high=2.0),
        node("Sum", ["v"] * 5000),
    ],
    ids=lambda made: made.op_type,
)
def test_a_node_that_is_as_it_may_be(tmp_path: Path, made: onnx.NodeProto) -> None:
    read(tmp_path, made, w=())


def test_a_function_may_have_the_name_of_an_operator(tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    body = [helper.make_node("Neg", ["a"], ["b"])]
    proto.functions.append(helper.make_function("", "Relu", ["a", "c"], ["b"], body, proto.opset_import))
    proto.graph.node.append(helper.make_node("Relu", ["x", "x"], ["called"]))
    load(model_files.write(proto, tmp_path / "m.onnx"))


def test_the_form_of_each_node_is_checked_for_itself(tmp_path: Path) -> None:
    good, bad = node("Clip", ["v", "", "w"]), node("Clip", ["", "w", "v"])
    bad.output[0] = "p"
    with pytest.raises(ModelError, match="leaves out its input 0"):
        read(tmp_path, good, bad, w=())


@pytest.mark.parametrize(
    ("attributes", "wrong"),
    [
        ({"group": 0}, "group"),
        ({"group": -1}, "group"),
        ({"group": 2**63 - 1}, "group"),
        ({"group": 5}, "group"),
        ({"strides": [0, 1]}, "strides"),
        ({"dilations": [1, -1]}, "dilations"),
        ({"kernel_shape": [3, 0]}, "kernel_shape"),
        ({"kernel_shape": [5, 5]}, "kernel_shape"),
        ({"kernel_shape": [3]}, "kernel_shape"),
        ({"pads": [0, 0, 1 << 60, 0]}, "pads"),
    ],
)
def test_a_convolution_that_cannot_be(tmp_path: Path, attributes: dict[str, object], wrong: str) -> None:
    with pytest.raises(ModelError, match=f"'{wrong}' that no Conv"):
        read(tmp_path, node("Conv", ["v", "w"], **attributes), w=(8, 4, 3, 3))


def test_weights_without_windows(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="that no Conv"):
        read(tmp_path, node("Conv", ["v", "w"]), w=(8, 4))


@pytest.mark.parametrize(
    "made",
    [
        node("Conv", ["v", "w"], group=2, strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node("Conv", ["v", "v"], group=3),  # of a weight that is not stored, nothing is known
        node("MaxPool", ["v"], kernel_shape=[2, 2]),
        node("AveragePool", ["v"], kernel_shape=[2, 2], pads=[0, 0, 1, 1]),
    ],
    ids=lambda made: made.op_type,
)
def test_windows_that_may_be(tmp_path: Path, made: onnx.NodeProto) -> None:
    read(tmp_path, made, w=(8, 4, 3, 3))


def test_a_pool_without_a_window(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'kernel_shape' that no MaxPool"):
        read(tmp_path, node("MaxPool", ["v"], kernel_shape=[0, 2]))


def test_bodies_may_use_one_name_for_different_weights(tmp_path: Path) -> None:
    def branch(size: int, out: str) -> onnx.GraphProto:
        made = helper.make_node("Conv", ["v", "k"], [out], kernel_shape=[size, size], pads=[size // 2] * 4)
        weight = model_files.tensor("k", model_files.random(4, 4, size, size))
        return helper.make_graph([made], out, [], [model_files.info(out, 1, 4, 8, 8)], [weight])

    condition = helper.make_node("Constant", [], ["c"], value=model_files.tensor("t", np.array(True)))
    branches = {"then_branch": branch(3, "a"), "else_branch": branch(5, "b")}
    read(tmp_path, condition, helper.make_node("If", ["c"], ["y"], **branches))
