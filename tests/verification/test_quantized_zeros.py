"""A zero that is lost by quantizing is seen, in every form that a weight can take."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from onnx import numpy_helper

from onnxprune.model.stored import put_numbers
from onnxprune.quantization.forms import in_dynamic, in_four_bits, with_stored_int8
from onnxprune.quantization.layers import find_layers
from onnxprune.quantization.preparing import prepared
from onnxprune.verification.quantized import check_patterns_kept, check_zeros_kept


def sparse_attention() -> ir.Model:
    """A model whose matrices are 2:4 along what is summed over."""
    proto = small_models.attention(width=128)
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 2 and min(tensor.dims) > 16:
            array = numpy_helper.to_array(tensor).copy()
            array.reshape(-1, 4, array.shape[1])[:, :2] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return ir.from_proto(proto)


def made_as(form: str, model: ir.Model) -> ir.Model:
    work = prepared(model)
    layers, _ = find_layers(work)
    names = [layer.name for layer in layers if layer.op_type == "MatMul"]
    if form == "stored":
        return with_stored_int8(work, layers)
    return in_dynamic(work, names) if form == "dynamic" else in_four_bits(work, names, block_size=32)


@pytest.mark.parametrize("form", ["stored", "dynamic", "int4"])
def test_zeros_are_counted_and_a_lost_one_is_seen(form):
    model = sparse_attention()
    made = made_as(form, model)
    check = check_zeros_kept(made, model)
    assert check.passed, check.detail
    assert int(check.detail.split()[1]) > 10000
    pattern = check_patterns_kept(made, model)
    assert pattern is not None
    assert pattern.passed
    assert pattern.detail.startswith("2:4 in ")
    stored = max(
        (
            value
            for value in made.graph.initializers.values()
            if value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
        ),
        key=lambda value: value.const_value.size,
    )
    array = stored.const_value.numpy().copy()
    if form == "int4":  # two numbers a byte, 8 stands for zero
        places = np.argwhere((array & 15) == 8)
        array[tuple(places[0])] ^= 1
    else:
        array[tuple(np.argwhere(array == 0)[0])] = 1
    put_numbers(stored, array)
    check = check_zeros_kept(made, model)
    assert not check.passed
    assert "1 of " in check.detail
    assert "are lost" in check.detail


def test_a_weight_that_is_gone_is_seen():
    model = sparse_attention()
    made = with_stored_int8(prepared(model), [])
    node = next(node for node in made.graph if node.op_type == "MatMul" and node.inputs[1].is_initializer())
    node.replace_input_with(1, made.graph.inputs[0])
    check = check_zeros_kept(made, model)
    assert not check.passed
    assert "there is no such weight any more" in check.detail or "are lost" in check.detail


def test_a_broken_pattern_is_seen():
    model = sparse_attention()
    made = with_stored_int8(prepared(model), [])
    value = next(
        v
        for v in made.graph.initializers.values()
        if len(v.shape) == 2 and min(v.const_value.numpy().shape) > 16
    )
    array = value.const_value.numpy().copy()
    array[0, 0] = 1
    put_numbers(value, array)
    check = check_patterns_kept(made, model)
    assert check is not None
    assert not check.passed
    assert check.name == "pattern 2:4"
    assert check.detail.endswith("1 runs keep more than 2")


def test_models_without_patterns_have_none_to_keep():
    model = ir.from_proto(small_models.mlp())
    assert check_patterns_kept(prepared(model), model) is None
    assert check_zeros_kept(prepared(model), model).passed
