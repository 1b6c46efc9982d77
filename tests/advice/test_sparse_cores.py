"""Which layers sparse tensor cores can run, by axis, sizes and type."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.advice.sparse_cores import compute_capability, sparse_layers
from onnxprune.advice.summary import capability_note


def convolution(before, after, kernel=3, group=1, dtype=np.float32):
    weight = numpy_helper.from_array(np.ones((after, before // group, kernel, kernel), dtype), "w")
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x, y = (helper.make_tensor_value_info(name, element, None) for name in "xy")
    node = helper.make_node("Conv", ["x", "w"], ["y"], "conv", group=group)
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def matrix(rows, columns, dtype=np.float32, transposed=False):
    weight = numpy_helper.from_array(np.ones((columns, rows) if transposed else (rows, columns), dtype), "w")
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = helper.make_tensor_value_info("x", element, [1, rows])
    y = helper.make_tensor_value_info("y", element, [1, columns])
    node = helper.make_node("Gemm", ["x", "w"], ["y"], "gemm", transB=int(transposed))
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


@pytest.mark.parametrize(
    ("model", "eligible", "why"),
    [
        (convolution(64, 64), True, None),
        (convolution(3, 64), False, "sums over 3 channels"),
        (convolution(24, 64), False, "no multiple of 16"),
        (convolution(64, 60), False, "60 outputs"),
        (convolution(64, 64, group=64), False, "64 groups sums over 1 channels"),
        (convolution(128, 128, group=8), True, None),
        (convolution(128, 96, group=8), False, "12 outputs"),
        (convolution(64, 64, dtype=np.float16), True, None),
        (convolution(64, 64, dtype=np.float64), False, "double"),
        (matrix(48, 24), True, None),
        (matrix(40, 24), False, "no multiple of 16"),
    ],
)
def test_eligibility(model, eligible, why):
    ((layer,), _) = sparse_layers(model)
    assert layer.eligible == eligible
    assert why is None or why in layer.why
    assert (layer.why is None) == eligible


def test_the_axis_is_that_of_the_sum():
    ((straight,), _) = sparse_layers(matrix(48, 24))
    ((turned,), _) = sparse_layers(matrix(48, 24, transposed=True))
    ((conv,), _) = sparse_layers(convolution(64, 64))
    assert [layer.axis for layer in (straight, turned, conv)] == [0, 1, 1]
    assert [layer.summed for layer in (straight, turned, conv)] == [48, 48, 64]


def test_only_large_layers_are_likely_to_be_faster():
    def likely(*sizes, **options):
        ((layer,), _) = sparse_layers(convolution(*sizes, **options))
        return layer.likely

    assert likely(512, 512, kernel=1)
    assert likely(64, 512)  # nine places of a kernel count ninefold
    assert not likely(64, 512, kernel=1)
    assert not likely(512, 64)


def test_int8_takes_whole_thirty_twos():
    x = helper.make_tensor_value_info("x", TensorProto.INT8, [1, 48])
    y = helper.make_tensor_value_info("y", TensorProto.INT32, [1, 64])
    weight = numpy_helper.from_array(np.ones((48, 64), np.int8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], "product")
    graph = helper.make_graph([node], "g", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.checker.check_model(model)
    ((layer,), _) = sparse_layers(ir.from_proto(model))
    assert (layer.runs_as, layer.eligible) == ("int8", False)
    assert "32" in layer.why


def test_the_device_is_asked_for_its_capability(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 7.5\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert compute_capability() == 7.5
    assert "lacks sparse tensor cores" in capability_note(7.5)
    assert "has sparse tensor cores" in capability_note(8.0)
    tool.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    assert compute_capability() is None
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert compute_capability() is None
    assert "no NVIDIA device" in capability_note(None)
