"""Matrix products in integers and in 4 bits: as ONNX Runtime's own tool makes them, in its fast kernels."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

from onnxprune.model.io import load, save
from onnxprune.quantization.forms import in_dynamic
from onnxprune.quantization.preparing import prepared
from onnxprune.quantization.products import InFourBits, InIntegers, replace_products


def three_products(read_elsewhere: bool = False) -> ir.Model:
    return ir.from_proto(three_products_proto(read_elsewhere))


def three_products_proto(read_elsewhere: bool = False) -> onnx.ModelProto:
    """x @ A and x @ B, which read the same, and their sum @ B: A and B are [16, 16]."""
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((16, 16)).astype(np.float32) for _ in "ab")
    b[:, 3] = 0  # a channel without any weight has a scale too
    lines = "xa = MatMul(x, A)  xb = MatMul(x, B)  s = Add(xa, xb)  y = MatMul(s, B)"
    if read_elsewhere:
        lines = lines.replace("s = Add(xa, xb)", "t = Add(xa, xb)  s = Add(t, B)")
    text = f"<ir_version: 8, opset_import: ['' : 17]> g (float[16, 16] x) => (float[16, 16] y) {{ {lines} }}"
    model = onnx.parser.parse_model(text.replace("'", chr(34)))
    model.graph.initializer.extend(
        [onnx.numpy_helper.from_array(a, "A"), onnx.numpy_helper.from_array(b, "B")]
    )
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"
    return model


PRODUCTS = ["node_0", "node_1", "node_3"]


def outputs_of(path, x):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.parametrize("per_channel", [True, False])
def test_products_in_integers_are_those_of_the_runtimes_own_tool(tmp_path, per_channel):
    model = three_products()
    source, theirs, ours = (str(tmp_path / name) for name in ("source.onnx", "theirs.onnx", "ours.onnx"))
    save(model, source)
    quantize_dynamic(
        source, theirs, per_channel=per_channel, weight_type=QuantType.QInt8,
        extra_options={"WeightSymmetric": True},
    )  # fmt: skip
    made = in_dynamic(prepared(model), PRODUCTS, per_channel=per_channel)
    save(made, ours)
    expected = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(theirs).graph.initializer}
    found = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(ours).graph.initializer}
    for name in "AB":
        np.testing.assert_array_equal(found[name], expected[f"{name}_quantized"])
    x = np.random.default_rng(2).standard_normal((16, 16)).astype(np.float32)
    np.testing.assert_array_equal(outputs_of(ours, x), outputs_of(theirs, x))


def test_the_runtime_makes_one_node_of_each_product_in_integers(tmp_path):
    made = in_dynamic(prepared(three_products()), PRODUCTS)
    save(made, tmp_path / "made.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(tmp_path / "made.onnx", options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert "MatMulInteger" not in kinds
    assert sum(kind in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat") for kind in kinds) == 3


def test_what_several_products_read_is_rounded_once():
    model = three_products()
    replace_products(model.graph, PRODUCTS, InIntegers(per_channel=True))
    assert [node.op_type for node in model.graph].count("DynamicQuantizeLinear") == 2  # x, and the sum
    assert sorted(model.graph.initializers) == ["A", "A_scale", "B", "B_scale"]


def test_floats_that_something_else_reads_stay():
    model = three_products(read_elsewhere=True)
    replace_products(model.graph, ["node_0", "node_1", "node_4"], InIntegers(per_channel=True))
    types = {name: value.const_value.dtype.name for name, value in model.graph.initializers.items()}
    assert types == {"A": "INT8", "B": "FLOAT", "A_scale": "FLOAT", "B_int8": "INT8", "B_scale": "FLOAT"}


def test_a_weight_that_is_the_other_operand_of_a_product_keeps_its_floats():
    text = (
        "g (float[16, 16] x) => (float[16, 16] y) { xa = MatMul(x, A)  ab = MatMul(A, B)  y = Add(xa, ab) }"
    )
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(three_products_proto().graph.initializer)
    for number, node in enumerate(proto.graph.node):
        node.name = f"node_{number}"
    model = ir.from_proto(proto)
    replace_products(model.graph, ["node_0", "node_1"], InIntegers(per_channel=True))
    types = {name: value.const_value.dtype.name for name, value in model.graph.initializers.items()}
    assert types == {"A": "FLOAT", "B": "INT8", "A_int8": "INT8", "A_scale": "FLOAT", "B_scale": "FLOAT"}
    onnx.checker.check_model(ir.to_proto(model))


def test_products_that_are_not_named_stay(tmp_path):
    model = three_products()
    replace_products(model.graph, ["node_0"], InFourBits(16))
    kinds = [node.op_type for node in model.graph]
    assert (kinds.count("MatMulNBits"), kinds.count("MatMul")) == (1, 2)


def test_weights_in_a_file_are_rounded_as_those_in_memory(tmp_path):
    model = three_products()
    save(model, tmp_path / "m.onnx", external_data=True)
    in_files, in_memory = load(tmp_path / "m.onnx"), model
    for each in (in_files, in_memory):
        replace_products(each.graph, PRODUCTS, InIntegers(per_channel=True))
    for name, value in in_memory.graph.initializers.items():
        np.testing.assert_array_equal(
            in_files.graph.initializers[name].const_value.numpy(), value.const_value.numpy()
        )
