"""Which nodes are quantized, and which follow them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import small_models
from onnx import numpy_helper

from onnxprune.quantization.layers import find_layers, is_quantized, matching, with_followers
from onnxprune.quantization.preparing import prepared


def parsed(body: str, **constants: np.ndarray) -> ir.Model:
    header = '<ir_version: 8, opset_import: ["" : 17]>'
    text = f"{header} g (float[n, 4, 8, 8] x) => (float[n, k, h, w] y) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    for node in proto.graph.node:
        node.name = f"{node.output[0]}_node"
    return ir.from_proto(proto)


KERNEL = np.ones((4, 4, 1, 1), np.float32)


def followers(body: str, layers: list[str]) -> list[str]:
    model = parsed(body, w=KERNEL)
    return [name.removesuffix("_node") for name in with_followers(model, [f"{name}_node" for name in layers])]


@pytest.mark.parametrize(
    ("body", "layers", "chosen"),
    [
        ("a = Conv(x, w) b = Relu(a) y = Conv(b, w)", "ay", "aby"),
        ("a = Conv(x, w) b = Relu(a) y = Conv(b, w)", "y", "y"),  # the first layer is in float
        ("a = Conv(x, w) b = Relu(a) y = Conv(b, w)", "a", "a"),  # the last one is
        ("a = Conv(x, w) b = Exp(a) y = Conv(b, w)", "ay", "ay"),  # no integer form
        ("a = Conv(x, w) b = Add(a, x) y = Conv(b, w)", "ay", "ay"),  # one operand is in float
        ("a = Conv(x, w) b = Conv(a, w) c = Add(a, b) d = Relu(c) y = Conv(d, w)", "aby", "abcdy"),
        ("a = Conv(x, w) b = Relu(a) c = Exp(b) d = Conv(b, w) y = Mul(c, d)", "ad", "ad"),
        ("a = Conv(x, w) y = Relu(a)", "a", "a"),  # the end of the model is in float
    ],
)
def test_nodes_between_layers_follow(body, layers, chosen):
    assert followers(body, list(layers)) == list(chosen)


def test_what_has_no_stored_float_weight_says_so():
    half = KERNEL.astype(np.float16)
    model = parsed(
        "a = Conv(x, w) b = Cast<to = 10>(a) c = Conv(b, h) d = Cast<to = 1>(c) y = MatMul(d, a)",
        w=KERNEL,
        h=half,
    )
    layers, skipped = find_layers(model)
    assert [layer.name for layer in layers] == ["a_node"]
    reasons = {note.name: note.reason for note in skipped}
    assert reasons["c_node"] == "its weight is float16, not float32"
    assert reasons["y_node"].startswith("both factors are computed")


def test_layers_are_found_by_name_and_by_weight():
    work = prepared(ir.from_proto(small_models.residual_net()))
    layers, _ = find_layers(work)
    assert set(matching(layers, ["stem.w*"])) == {"stem_node"}
    assert set(matching(layers, ["stem_node"])) == {"stem_node"}
    assert not matching(layers, ["nothing"])


@pytest.mark.parametrize(
    ("body", "quantized"),
    [
        ("y = Conv(x, w)", False),
        ("a = DequantizeLinear(q, s) y = Mul(x, a)", True),
        ("a = Cast<to = 1>(q) b = Mul(a, s) y = Conv(x, b)", True),
        ("a = Cast<to = 1>(q) y = Mul(x, a)", False),
    ],
)
def test_models_that_hold_integers_are_told(body, quantized):
    model = parsed(body, w=KERNEL, q=KERNEL.astype(np.int8), s=np.array(0.5, np.float32))
    assert is_quantized(model) == quantized
