"""Output shapes of what ONNX Runtime fuses: activations, norms, products, pools, experts."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxprune.model.contrib_shapes import Dims, computed, shape_function
from onnxprune.model.dims import Dim


@shape_function(
    "BiasGelu", "FastGelu", "Gelu", "Inverse", "MoE", "QuickGelu", "RotaryEmbedding", "Trilu"
)  # fmt: skip
def _like_first(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    return [inputs[0]]


@shape_function("LayerNormalization", "SimplifiedLayerNormalization", domain="")
def _norm(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    """The statistics, which are further outputs, have size 1 along the axes that they are taken over."""
    x = inputs[0]
    if x is None:
        return []
    first = node.attributes.get_int("axis", -1) % len(x)
    statistics = (*x[:first], *(Dim(1) for _ in x[first:]))
    return [x, statistics, statistics]


@shape_function("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def _skip_norm(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    x = inputs[0]
    statistics = None if x is None else (*x[:-1], Dim(1))
    return [x, statistics, statistics, x]


@shape_function("EmbedLayerNormalization")
def _embedding_norm(_: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    ids, words = inputs[0], inputs[2]
    if ids is None or words is None:
        return []
    y = (*ids, words[-1])
    return [y, ids[:1], y]


@shape_function("FusedMatMul", "TransposeMatMul")
def _matrix_product(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    a, b = (_ordered(node, dims, name) for dims, name in zip(inputs, "AB", strict=False))
    if not a or not b:
        return []
    stack = _broadcast(a[:-2], b[:-2])
    return [(*stack, *a[-2:-1], *(b[-1:] if len(b) > 1 else ()))]


def _ordered(node: ir.Node, dims: Dims, name: str) -> tuple[Dim, ...]:
    """Return the sizes ``[stack..., rows, columns]`` of an operand, however they are stored."""
    if dims is None:
        return ()
    if len(dims) > 2 and node.attributes.get_int(f"transBatch{name}", 0) != 0:
        dims = (*dims[1:-1], dims[0], dims[-1])
    if len(dims) > 1 and node.attributes.get_int(f"trans{name}", 0) != 0:
        dims = (*dims[:-2], dims[-1], dims[-2])
    return dims


def _broadcast(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(a), len(b))
    a, b = ((Dim(1),) * (rank - len(dims)) + dims for dims in (a, b))
    return tuple(right if left.size == 1 else left for left, right in zip(a, b, strict=True))


@shape_function("NhwcMaxPool")
def _channels_last_pool(node: ir.Node, inputs: Sequence[Dims]) -> Sequence[Dims]:
    """Windows along every axis between the first and the last, as MaxPool counts them."""
    x = inputs[0]
    if x is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return []
    kernel = node.attributes.get_ints("kernel_shape")
    ones = [1] * len(kernel)
    strides = list(node.attributes.get_ints("strides", ())) or ones
    dilations = list(node.attributes.get_ints("dilations", ())) or ones
    pads = list(node.attributes.get_ints("pads", ())) or [0] * 2 * len(kernel)
    upwards = node.attributes.get_int("ceil_mode", 0)
    space = []
    for place, dim in enumerate(x[1:-1]):
        padded = dim.size + pads[place] + pads[place + len(kernel)]
        room = padded - dilations[place] * (kernel[place] - 1) - 1
        steps = -(-room // strides[place]) if upwards else room // strides[place]
        space.append(computed(steps + 1, node.outputs[0], place + 1, dim))
    return [(x[0], *space, x[-1])]
