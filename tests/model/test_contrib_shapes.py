"""Shapes of operators that ONNX does not know: those that ONNX Runtime says, symbols included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import pytest
from cutting import Constant, graph

from onnxprune.feeds import random_feeds
from onnxprune.model.shapes import concretise
from onnxprune.runtime import open_session

SEQUENCE = "float[N,T,12] x"
MICROSOFT = "com.microsoft"

#: the nodes, with outputs y and perhaps more; inputs; constants; outputs
CASES: dict[str, tuple[str, str, Mapping[str, Constant], str]] = {
    "attention": (
        f"y, c = {MICROSOFT}.Attention<num_heads = 3, qkv_hidden_sizes = [12, 12, 12]>(x, w, b)",
        SEQUENCE, {"w": (12, 36), "b": (36,)}, "y; c",
    ),
    "attention with a past": (
        f"y, c = {MICROSOFT}.Attention<num_heads = 3, unidirectional = 1>(x, w, b, , past)",
        SEQUENCE + ", float[2,N,3,P,4] past", {"w": (12, 36), "b": (36,)}, "y; c",
    ),
    "multi-head attention": (
        f"y, k, v = {MICROSOFT}.MultiHeadAttention<num_heads = 3>(x, m, n)",
        SEQUENCE + ", float[N,S,12] m, float[N,S,6] n", {}, "y; k; v",
    ),
    "multi-head attention with a past": (
        f"y, k, v = {MICROSOFT}.MultiHeadAttention<num_heads = 3>(x, x, x, , , , pk, pv)",
        SEQUENCE + ", float[N,3,P,4] pk, float[N,3,P,4] pv", {}, "y; k; v",
    ),
    "stacked keys": (
        f"y = {MICROSOFT}.MultiHeadAttention<num_heads = 3>(x, pk, pv)",
        SEQUENCE + ", float[N,3,P,4] pk, float[N,3,P,4] pv", {}, "y",
    ),
    "standard attention": (
        "y, k, v, s = Attention<q_num_heads = 3, kv_num_heads = 1>(x, m, n)",
        SEQUENCE + ", float[N,S,4] m, float[N,S,2] n", {}, "y; k; v; s",
    ),
    "stacked standard attention": (
        "y, k, v, s = Attention(q, m, n, , pk, pv)",
        "float[N,4,T,3] q, float[N,2,S,3] m, float[N,2,S,5] n, float[N,2,P,3] pk, float[N,2,P,5] pv",
        {}, "y; k; v; s",
    ),
    "rotary embedding": (
        f"y = {MICROSOFT}.RotaryEmbedding(x, p, cos, sin)",
        SEQUENCE, {"p": [0], "cos": (20, 2), "sin": (20, 2)}, "y",
    ),
    "embeddings": (
        f"y, i, s = {MICROSOFT}.EmbedLayerNormalization(ids, , w, p, , g, b)",
        "int32[N,T] ids", {"w": (9, 8), "p": (30, 8), "g": (8,), "b": (8,)}, "y; int32 i; s",
    ),
    "skip norm": (
        f"y, , , s = {MICROSOFT}.SkipLayerNormalization(x, x, g, b)",
        SEQUENCE, {"g": (12,), "b": (12,)}, "y; s",
    ),
    "simplified norm": (
        "y = SimplifiedLayerNormalization<axis = -1>(x, g)", SEQUENCE, {"g": (12,)}, "y"
    ),
    "matrix product": (
        f"y = {MICROSOFT}.FusedMatMul<transA = 1, transB = 1>(x, w)", SEQUENCE, {"w": (7, 5)}, "y"
    ),
    "stacks of products": (
        f"y = {MICROSOFT}.FusedMatMul<transBatchA = 1>(q, w)", "float[N,3,4] q", {"w": (3, 4, 6)}, "y"
    ),
    "fused convolution": (
        f'y = {MICROSOFT}.FusedConv<activation = "Relu", strides = [2, 2], pads = [1, 1, 1, 1]>(z, w)',
        "float[N,3,9,H] z", {"w": (8, 3, 3, 3)}, "y",
    ),
    "fused gemm": (
        f'y = {MICROSOFT}.FusedGemm<transB = 1, activation = "Relu">(r, w)',
        "float[N,6] r", {"w": (8, 6)}, "y",
    ),
    "experts": (
        f"y = {MICROSOFT}.MoE(r, p, u, , w)",
        "float[N,6] r, float[N,3] p", {"u": (3, 5, 6), "w": (3, 6, 5)}, "y",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("sizes", [(2, 5, 7), (3, 4, 9)])
def test_shapes_are_those_that_run(name: str, sizes: tuple[int, int, int]) -> None:
    body, inputs, constants, outputs = CASES[name]
    if "matrix product" in name:  # what is transposed has its length in the weight
        constants = {"w": (7, sizes[1])}
    model = graph(body, inputs=inputs, constants=constants, outputs=outputs, opset=23)
    symbols = dict(zip(("N", "T", "S"), sizes, strict=True)) | {"P": 6, "H": 10}
    fed = {
        str(value.name): [symbols.get(str(dim), dim) if not isinstance(dim, int) else dim for dim in shape]
        for value in model.graph.inputs
        if (shape := [getattr(dim, "value", dim) for dim in value.shape or ()])
    }
    shapes = concretise(model, fed)
    assert not shapes.unknown
    results = open_session(model).run(random_feeds(model, shapes.input_shapes, 0))
    for output in model.graph.outputs:
        assert shapes.shape(output) == results[str(output.name)].shape, output.name


def test_symbols_stay_symbols() -> None:
    """Batch and sequence keep their names, and what is added to them has one of its own."""
    body, inputs, constants, outputs = CASES["multi-head attention with a past"]
    model = graph(body, inputs=inputs, constants=constants, outputs=outputs)
    shapes = concretise(model)
    y, keys, _ = model.graph.outputs
    assert [dim.label for dim in shapes.dims[y]] == ["N", "T", "12"]
    assert [dim.label for dim in shapes.dims[keys]] == ["N", "3", "k.2", "4"]


def test_group_query_attention() -> None:
    body = f"""
        y, k, v = {MICROSOFT}.GroupQueryAttention<num_heads = 4, kv_num_heads = 2>(q, , , , , last, total)
    """
    constants = {"last": np.array([4, 4], np.int32), "total": np.array(5, np.int32)}
    model = graph(body, inputs="float[2,5,64] q", outputs="y; k; v", constants=constants)
    shapes = concretise(model)
    results = open_session(model).run(random_feeds(model, shapes.input_shapes, 0))
    for output in model.graph.outputs:
        assert shapes.shape(output) == results[str(output.name)].shape


@pytest.mark.parametrize("ceiling", [0, 1])
@pytest.mark.parametrize("windows", [(9, 3, 2, 1, 1), (10, 2, 3, 0, 2)])
def test_channels_last_pool(ceiling: int, windows: tuple[int, ...]) -> None:
    """The only kernel takes integers, so the standard operator with the channels in front is compared."""
    size, window, stride, pad, dilation = windows
    attributes = (
        f"kernel_shape = [{window}, {window}], strides = [{stride}, {stride}], ceil_mode = {ceiling}, "
        f"pads = [{pad}, {pad}, {pad}, {pad}], dilations = [{dilation}, {dilation}]"
    )
    last = graph(f"y = {MICROSOFT}.NhwcMaxPool<{attributes}>(x)", inputs=f"float[N,{size},{size},3] x")
    first = graph(f"y = MaxPool<{attributes}>(x)", inputs=f"float[N,3,{size},{size}] x")
    batch, *space, channels = concretise(last).shape(last.graph.outputs[0]) or ()
    assert (batch, channels, *space) == concretise(first).shape(first.graph.outputs[0])


def test_an_operator_that_is_not_known_stays_so() -> None:
    model = graph(f"h = {MICROSOFT}.NoSuchOperator(x) y = Relu(h)", inputs=SEQUENCE)
    reasons = concretise(model).unknown
    assert any("NoSuchOperator is not a standard operator" in reason for reason in reasons.values())
    assert isinstance(next(iter(reasons)), ir.Value)
