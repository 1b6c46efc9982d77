"""What ONNX Runtime fuses, and attention of both kinds, against ONNX Runtime in many forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from executing import check_forward, check_gradient, in_torch, one_node

from onnxprune.errors import ModelError

MICROSOFT = "com.microsoft"
RANDOM = np.random.default_rng(3)


def f(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def check(op: str, inputs: dict[str, np.ndarray], *, gradient: bool = True, **options: Any) -> None:
    """Compare with ONNX Runtime, and gradients with finite differences."""
    options.setdefault("domain", MICROSOFT)
    model = one_node(op, inputs, **options)
    check_forward(model, inputs)
    if gradient:
        check_gradient(model, inputs)


X = {"x": f(2, 3, 8)}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes"),
    [
        ("Gelu", X, {}),
        ("QuickGelu", X, {"alpha": 1.5}),
        ("FastGelu", X, {}),
        ("FastGelu", {**X, "b": f(8)}, {}),
        ("BiasGelu", {**X, "b": f(8)}, {}),
        ("FusedMatMul", {"a": f(2, 3, 4), "b": f(2, 5, 4)}, {"transB": 1, "alpha": 0.3}),
        ("FusedMatMul", {"a": f(2, 4, 3), "b": f(4, 5)}, {"transA": 1}),
        ("FusedMatMul", {"a": f(3, 2, 4), "b": f(2, 4, 5)}, {"transBatchA": 1}),
        ("TransposeMatMul", {"a": f(2, 3, 4), "b": f(2, 5, 4)}, {"transB": 1}),
        ("FusedGemm", {"a": f(3, 4), "b": f(5, 4), "c": f(5)}, {"transB": 1, "activation": "Relu"}),
        ("FusedGemm", {"a": f(4, 3), "b": f(4, 5), "c": f(3, 1)},
         {"transA": 1, "alpha": 0.5, "beta": 2.0, "activation": "LeakyRelu", "activation_alpha": 0.2}),
        ("FusedGemm", {"a": f(3, 4), "b": f(4, 5)}, {"activation": "Tanh"}),
        ("FusedConv", {"x": f(2, 4, 7, 7), "w": f(6, 4, 3, 3), "b": f(6)},
         {"activation": "Relu", "pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("FusedConv", {"x": f(1, 4, 5, 5), "w": f(4, 1, 3, 3), "b": f(4), "z": f(1, 4, 3, 3)},
         {"group": 4, "activation": "Clip", "activation_params": [-0.5, 0.7]}),
        ("FusedConv", {"x": f(1, 2, 6, 6), "w": f(4, 2, 3, 3)},
         {"activation": "HardSigmoid", "activation_params": [0.3, 0.4], "dilations": [2, 2]}),
        ("FusedConv", {"x": f(1, 2, 6, 6), "w": f(4, 2, 3, 3), "b": f(4)},
         {"activation": "LeakyRelu", "activation_params": [0.15]}),
        ("BiasSoftmax", {"x": f(2, 3, 4, 5), "b": f(2, 1, 1, 5)}, {"axis": 3, "is_inner_broadcast": 1}),
        ("Inverse", {"x": f(2, 4, 4) + 3 * np.eye(4, dtype=np.float32)}, {}),
        ("CDist", {"a": f(3, 4), "b": f(5, 4)}, {"metric": "euclidean"}),
        ("CDist", {"a": f(3, 4), "b": f(5, 4)}, {"metric": "sqeuclidean"}),
        ("ConvTransposeWithDynamicPads",
         {"x": f(1, 3, 4, 4), "w": f(3, 2, 3, 3)}, {"strides": [2, 2], "output_padding": [1, 1],
          "constants": {"p": np.array([1, 0, 0, 1])}}),
        ("Trilu", {"x": f(4, 5)}, {"upper": 0, "constants": {"k": np.array(1)}}),
        ("ExpandDims", X, {"constants": {"axis": np.array(-2, np.int32)}}),
    ],
)  # fmt: skip
def test_products_and_activations(op, inputs, attributes):
    check(op, inputs, **attributes)


def test_images_with_channels_last():
    image = RANDOM.integers(0, 255, (2, 7, 7, 3)).astype(np.uint8)
    model = one_node("NhwcMaxPool", {"x": image}, domain=MICROSOFT, kernel_shape=[3, 3], strides=[2, 2])
    check_forward(model, {"x": image})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("wanted", [1, 4])
def test_skip_normalizations(bias, wanted):
    terms = {"x": f(2, 3, 8), "skip": f(2, 3, 8), "scale": f(8)}
    added = {"bias": f(8)} if bias else {}
    outputs = ["y", "", "", "s"][:wanted]
    for op, inputs in (
        ("SkipLayerNormalization", {**terms, "shift": f(8), **added}),
        ("SkipSimplifiedLayerNormalization", {**terms, **added}),
    ):
        model = one_node(op, inputs, domain=MICROSOFT, epsilon=1e-5)
        del model.graph.node[0].output[:], model.graph.output[:]
        model.graph.node[0].output.extend(outputs)
        model.graph.output.extend([type(model.graph.value_info.add())(name=name) for name in outputs if name])
        del model.graph.value_info[:]
        check_forward(model, inputs)
        check_gradient(model, inputs)


@pytest.mark.parametrize("segments", [False, True])
def test_embedding_normalization(segments):
    ids = RANDOM.integers(0, 11, (2, 5)).astype(np.int32)
    tables = {"words": f(11, 8), "places": f(7, 8), "scale": f(8), "shift": f(8)}
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], np.int32)
    own = {"kinds": RANDOM.integers(0, 2, (2, 5)).astype(np.int32)} if segments else {}
    more = {"segments": f(2, 8)} if segments else {}
    inputs = {"ids": ids, **own, **tables, **more, "mask": mask}
    order = [
        "ids", "kinds" if segments else "", "words", "places", "segments" if segments else "", "scale",
        "shift", "mask",
    ]  # fmt: skip
    check("EmbedLayerNormalization", inputs, order=order, outputs=2)


QKV = {"x": f(2, 5, 12), "w": f(12, 36), "b": f(36)}
LENGTHS = np.array([3, 5], np.int32)


@pytest.mark.parametrize(
    ("inputs", "order", "attributes"),
    [
        (QKV, None, {}),
        (QKV, None, {"unidirectional": 1}),
        ({**QKV, "m": LENGTHS}, None, {}),
        ({**QKV, "m": np.array([3, 5, 1, 0], np.int32)}, None, {}),
        ({**QKV, "m": np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], np.int32)}, None, {"mask_filter_value": -5.0}),
        ({**QKV, "m": RANDOM.integers(0, 2, (2, 5, 5)).astype(np.int32)}, None, {}),
        ({**QKV, "past": f(2, 2, 3, 2, 4)}, ["x", "w", "b", "", "past"], {"unidirectional": 1}),
        ({**QKV, "a": f(2, 3, 5, 5)}, ["x", "w", "b", "", "", "a"], {"scale": 0.3}),
        ({**QKV, "w": f(12, 30), "b": f(30)}, None, {"qkv_hidden_sizes": [12, 12, 6]}),
    ],
)  # fmt: skip
def test_projected_attention(inputs, order, attributes):
    outputs = 1 if "qkv_hidden_sizes" in attributes else 2
    if "past" not in inputs:
        outputs = 1
    check("Attention", inputs, order=order, num_heads=3, outputs=outputs, **attributes)


PARTS = {"q": f(2, 5, 12), "k": f(2, 6, 12), "v": f(2, 6, 12)}
SELF = {"q": f(2, 5, 12), "k": f(2, 5, 12), "v": f(2, 5, 12)}


@pytest.mark.parametrize(
    ("inputs", "order", "outputs", "attributes"),
    [
        (PARTS, None, 1, {}),
        ({**PARTS, "v": f(2, 6, 6), "b": f(30)}, None, 1, {"scale": 0.4}),
        (SELF, None, 3, {"unidirectional": 1}),
        ({**PARTS, "m": np.array([4, 6], np.int32)}, ["q", "k", "v", "", "m"], 1, {}),
        ({**PARTS, "m": RANDOM.integers(0, 2, (2, 6)).astype(np.int32)}, ["q", "k", "v", "", "m"], 1, {}),
        ({**PARTS, "a": f(1, 3, 5, 6)}, ["q", "k", "v", "", "", "a"], 1, {}),
        ({**SELF, "pk": f(2, 3, 2, 4), "pv": f(2, 3, 2, 4)}, ["q", "k", "v", "", "", "", "pk", "pv"], 3, {}),
        ({"q": f(2, 5, 12), "k": f(2, 3, 6, 4), "v": f(2, 3, 6, 4)}, None, 1, {}),
    ],
)  # fmt: skip
def test_multi_head_attention(inputs, order, outputs, attributes):
    check("MultiHeadAttention", inputs, order=order, outputs=outputs, num_heads=3, **attributes)


def angles(length: int, places: int) -> dict[str, np.ndarray]:
    turns = np.outer(np.arange(length), 0.3 ** np.arange(places // 2))
    return {"cos": np.cos(turns).astype(np.float32), "sin": np.sin(turns).astype(np.float32)}


def grouped(
    queries: int, past: int, total: int, last: list[int], **extra: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "q": f(2, queries, 64), "k": f(2, queries, 32), "v": f(2, queries, 32), "pk": f(2, 2, past, 16),
        "pv": f(2, 2, past, 16), "last": np.array(last, np.int32), "total": np.array(total, np.int32), **extra,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("inputs", "attributes"),
    [
        (grouped(4, 0, 4, [3, 3]), {}),
        (grouped(1, 5, 6, [5, 5]), {}),
        (grouped(1, 8, 6, [5, 3]), {}),  # room behind the past, and one sample with a shorter one
        (grouped(3, 4, 7, [6, 6]), {"local_window_size": 2}),
        (grouped(3, 4, 7, [6, 6]), {"softcap": 2.0, "scale": 0.7}),
        (grouped(1, 5, 6, [5, 4], **angles(9, 16)), {"do_rotary": 1}),
        (grouped(4, 0, 4, [3, 3], **angles(9, 16)), {"do_rotary": 1, "rotary_interleaved": 1}),
        (grouped(4, 0, 4, [3, 3]), {"smooth_softmax": 1}),
    ],
)
def test_grouped_attention(inputs, attributes):
    model = one_node(
        "GroupQueryAttention", inputs, domain=MICROSOFT, num_heads=4, kv_num_heads=2, outputs=3, **attributes
    )
    y, *_ = in_torch(model, inputs)
    assert np.isfinite(y).all()
    only_result = one_node(
        "GroupQueryAttention", inputs, domain=MICROSOFT, num_heads=4, kv_num_heads=2, outputs=3, **attributes
    )
    del only_result.graph.output[1:]  # caches hold what nobody reads, behind the last key
    check_forward(only_result, inputs)


def test_grouped_attention_of_one_tensor():
    inputs = grouped(4, 0, 4, [3, 3])
    inputs["q"] = f(2, 4, 128)
    order = ["q", "", "", "pk", "pv", "last", "total"]
    for name in "kv":
        del inputs[name]
    model = one_node(
        "GroupQueryAttention", inputs, domain=MICROSOFT, num_heads=4, kv_num_heads=2, outputs=3, order=order
    )
    check_forward(model, inputs)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("start", [None, 2])
def test_rotary_embedding_of_onnx_runtime(interleaved, start):
    positions = np.array([[0, 1, 4], [2, 3, 1]]) if start is None else np.array([start])
    inputs = {"x": f(2, 3, 16), "at": positions, **angles(6, 8)}
    check("RotaryEmbedding", inputs, interleaved=interleaved, gradient=False)
    check("RotaryEmbedding", {**inputs, "x": f(2, 4, 3, 8)}, interleaved=interleaved, gradient=False)


@pytest.mark.parametrize("opset", [23, 24])
@pytest.mark.parametrize(
    "attributes", [{}, {"is_causal": 1}, {"softcap": 1.5}, {"scale": 0.2, "qk_matmul_output_mode": 3}]
)
def test_attention_of_the_standard(opset, attributes):
    inputs = {"q": f(2, 4, 5, 8), "k": f(2, 2, 6, 8), "v": f(2, 2, 6, 10), "m": f(5, 6)}
    outputs = 4 if "qk_matmul_output_mode" in attributes else 1
    model = one_node("Attention", inputs, opset=opset, outputs=outputs, **attributes)
    check_forward(model, inputs)
    check_gradient(model, inputs)


@pytest.mark.parametrize(
    "attributes",
    [
        {"k": 1},
        {"k": 2, "normalize_routing_weights": 1, "activation_type": "gelu"},
        {"k": 2, "activation_type": "silu"},
    ],
)
def test_experts(attributes):
    inputs = {
        "x": f(6, 8), "scores": f(6, 4), "u": f(4, 5, 8), "b": f(4, 5), "w": f(4, 8, 5), "c": f(4, 8)
    }  # fmt: skip
    check("MoE", inputs, **attributes)


def test_a_form_without_meaning_is_named():
    inputs = {**QKV, "m": LENGTHS}
    model = one_node("Attention", inputs, domain=MICROSOFT, num_heads=3, do_rotary=1)
    with pytest.raises(ModelError, match="Attention 'it': do_rotary"):
        in_torch(model, inputs)
