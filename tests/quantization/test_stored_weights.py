"""Weights in 8 bits of layers that compute in float."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.model.io import save
from onnxprune.ops.weights import locate_weights
from onnxprune.quantization.forms import with_stored_int8
from onnxprune.quantization.layers import find_layers
from onnxprune.quantization.preparing import prepared
from onnxprune.quantization.stored_weights import store_in_int8, symmetric
from onnxprune.runtime import open_session, save_optimized


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    shape=st.sampled_from([(5, 8), (4, 8, 3, 3), (1, 1), (3, 4, 2)]),
    axis=st.sampled_from([0, 1, None]),
    scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e6]),
    sparsity=st.floats(0, 1),
)
def test_zeros_stay_and_the_error_is_half_a_step(seed, shape, axis, scale, sparsity):
    random = np.random.default_rng(seed)
    weight = (random.standard_normal(shape) * scale).astype(np.float32)
    weight[random.random(shape) < sparsity] = 0
    quantized, steps = symmetric(weight, axis)
    assert quantized.dtype == np.int8
    assert not quantized[weight == 0].any()
    assert np.abs(quantized.astype(int)).max() <= 127
    real = quantized.astype(np.float32) * steps
    assert (np.abs(real - weight) <= 0.501 * steps + 1e-44).all()


def test_each_channel_has_its_own_step():
    weight = np.array([[1.0, -0.5], [100.0, 3.0]], np.float32)
    quantized, steps = symmetric(weight, 0)
    assert steps.reshape(-1) == pytest.approx([1 / 127, 100 / 127])
    assert quantized.tolist() == [[127, -64], [127, 4]]
    assert symmetric(weight, None)[1].shape == ()


def test_onnxruntime_works_the_weights_out_when_it_loads_them(tmp_path):
    model = ir.from_proto(small_models.residual_net(width=16))
    work = prepared(model)
    layers, _ = find_layers(work)
    made = with_stored_int8(work, layers)
    optimized = tmp_path / "optimized.onnx"
    save_optimized(made, optimized)
    left = {node.op_type for node in onnx.load(optimized).graph.node}
    assert not left & {"Cast", "DequantizeLinear"}
    path = tmp_path / "stored.onnx"
    save(made, path)
    kept = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    for layer in layers:
        assert kept[layer.weight].data_type == onnx.TensorProto.INT8
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    exact, rough = (open_session(each).run({"x": x})["y"] for each in (model, made))
    assert 0 < np.abs(rough - exact).max() < 0.03 * np.abs(exact).max()


def test_weights_are_found_behind_their_scale():
    work = prepared(ir.from_proto(small_models.residual_net(width=16)))
    layers, _ = find_layers(work)
    found, skipped = locate_weights(with_stored_int8(work, layers))
    assert {weight.use.tensor for weight in found} >= {layer.weight for layer in layers}
    assert all(weight.quantized for weight in found)
    assert not skipped


def test_a_weight_that_two_layers_share_is_stored_once():
    proto = small_models.mlp(width=16)
    weights = [node.input[1] for node in proto.graph.node if node.op_type == "Gemm"]
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    first = next(
        name
        for name in weights
        if weights.count(name) == 1 and list(shapes.values()).count(shapes[name]) >= 1
    )
    again = proto.graph.node.add()
    gemm = next(node for node in proto.graph.node if node.op_type == "Gemm" and node.input[1] == first)
    again.CopyFrom(gemm)
    again.name, again.output[0] = "again", "second"
    proto.graph.output.append(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, None))
    work = prepared(ir.from_proto(proto))
    layers, _ = find_layers(work)
    made = with_stored_int8(work, layers)
    assert sum(node.op_type == "Cast" for node in made.graph) == len({layer.weight for layer in layers})
    x = np.ones((2, 16), np.float32)
    assert open_session(made).run({"x": x})["second"].shape[0] == 2


def test_a_weight_times_itself_keeps_its_floats():
    text = "g (float[8, 8] x) => (float[8, 8] y) { square = MatMul(A, A)  y = Add(x, square) }"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "A"))
    proto.graph.node[0].name = "square"
    model = ir.from_proto(proto)
    assert store_in_int8(model, find_layers(model)[0]) == ["square"]
    assert {"A", "A_int8"} <= set(model.graph.initializers)
    onnx.checker.check_model(ir.to_proto(model))
