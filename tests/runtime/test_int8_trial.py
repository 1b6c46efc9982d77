"""ONNX Runtime's own quantization, in a process that can be stopped."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from onnxprune.errors import RuntimeFailure
from onnxprune.runtime import open_session
from onnxprune.runtime.int8_trial import quantize

FEEDS = [
    {"x": np.random.default_rng(seed).standard_normal((1, 3, 8, 8)).astype(np.float32)} for seed in range(3)
]


def test_weights_become_int8_and_the_model_still_computes(tmp_path):
    model = ir.from_proto(small_models.residual_net(width=16))
    out = tmp_path / "int8.onnx"
    quantize(model, FEEDS, out, timeout_seconds=300)
    quantized = onnx.load(out)
    types = {tensor.name: tensor.data_type for tensor in quantized.graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 for kind in types.values()) > 5
    assert "BatchNormalization" not in {node.op_type for node in quantized.graph.node}
    exact = open_session(model).run(FEEDS[0])["y"]
    rough = open_session(out).run(FEEDS[0])["y"]
    assert 0 < np.abs(rough - exact).max() < 0.2 * np.abs(exact).max()


def test_ranges_come_from_all_the_inputs(tmp_path):
    model = ir.from_proto(small_models.residual_net(width=16))
    narrow, wide = tmp_path / "narrow.onnx", tmp_path / "wide.onnx"
    quantize(model, FEEDS[:1], narrow, timeout_seconds=300)
    quantize(model, [FEEDS[0], {"x": 100 * FEEDS[0]["x"]}], wide, timeout_seconds=300)

    def scale(path):
        (value,) = (
            onnx.numpy_helper.to_array(tensor)
            for tensor in onnx.load(path).graph.initializer
            if tensor.name == "x_scale"
        )
        return float(value)

    assert scale(wide) == pytest.approx(100 * scale(narrow), rel=1e-3)


def test_it_is_stopped_when_the_time_is_over(tmp_path):
    model = ir.from_proto(small_models.residual_net())
    with pytest.raises(RuntimeFailure, match="quantizing takes more than 0 s"):
        quantize(model, FEEDS, tmp_path / "int8.onnx", timeout_seconds=0)


def test_what_it_can_not_do_is_one_line(tmp_path):
    model = ir.from_proto(small_models.residual_net())
    with pytest.raises(RuntimeFailure, match="can't quantize the model: ") as failure:
        quantize(model, [{"x": np.zeros((1, 3, 9), np.float32)}], tmp_path / "int8.onnx", timeout_seconds=300)
    assert "\n" not in str(failure.value)
