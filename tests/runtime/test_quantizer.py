"""ONNX Runtime's own quantization, in a process that can be stopped."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import small_models

from onnxprune.errors import RuntimeFailure
from onnxprune.runtime.quantizer import quantize_static

FEEDS = [
    {"x": np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)} for seed in range(3)
]


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(small_models.residual_net(width=16), path)
    return path


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
def test_ranges_come_from_all_the_inputs(tmp_path, model, calibration):
    narrow, wide = tmp_path / "narrow.onnx", tmp_path / "wide.onnx"
    quantize_static(model, FEEDS[:1], narrow, calibration=calibration)
    quantize_static(model, [FEEDS[0], {"x": 4 * FEEDS[0]["x"]}], wide, calibration=calibration)

    def scale(path):
        (value,) = (
            onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(path).graph.initializer
            if tensor.name == "x_scale"
        )
        return float(value)

    factor = scale(wide) / scale(narrow)
    assert factor == pytest.approx(4, rel=1e-3) if calibration == "minmax" else factor > 1.5


def test_only_the_nodes_that_are_named_are_quantized(tmp_path, model):
    proto = onnx.load(model)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    onnx.save(proto, model)
    first = next(node for node in proto.graph.node if node.op_type == "Conv")
    quantize_static(model, FEEDS, tmp_path / "one.onnx", nodes=[first.name])
    types = [tensor.data_type for tensor in onnx.load(tmp_path / "one.onnx").graph.initializer]
    assert sum(1 for kind in types if kind == onnx.TensorProto.INT8 and kind) >= 1
    weights = [t for t in onnx.load(tmp_path / "one.onnx").graph.initializer if t.name.endswith("_quantized")]
    assert [tensor.name for tensor in weights if len(tensor.dims) == 4] == [f"{first.input[1]}_quantized"]


def test_it_is_stopped_when_the_time_is_over(tmp_path, model):
    with pytest.raises(RuntimeFailure, match="quantizing takes more than 0 s"):
        quantize_static(model, FEEDS, tmp_path / "int8.onnx", timeout_seconds=0)


def test_what_it_can_not_do_is_one_line(tmp_path, model):
    with pytest.raises(RuntimeFailure, match="can't quantize the model: ") as failure:
        quantize_static(model, [{"x": np.zeros((1, 3, 9), np.float32)}], tmp_path / "int8.onnx")
    assert "\n" not in str(failure.value)
