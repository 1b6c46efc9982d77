"""Norms, embeddings, products, convolutions and experts as ONNX Runtime fuses them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning, numbers_of
from onnxprune.ops.meanings.conv import conv_transpose, convolution
from onnxprune.ops.meanings.pool import max_pool
from onnxprune.ops.meanings.windows import padded

_DOMAIN = "com.microsoft"

Activation = Callable[[Tensor], Tensor]


def fused_activation(node: Static) -> Activation:
    """Return the function that a fused node applies to its result: attribute ``activation``.

    Raises:
        NoMeaning: a function that ONNX Runtime does not fuse today.
    """
    name = node.text("activation")
    given = node.node.attributes.get_floats("activation_params", None) or ()
    single = node.float("activation_alpha", 0.01), node.float("activation_beta", 0.0)
    first, second = (*given, *single[len(given) :])[:2]
    plain: dict[str, Activation] = {
        "": lambda x: x,
        "Relu": torch.relu,
        "Tanh": torch.tanh,
        "Sigmoid": torch.sigmoid,
        "LeakyRelu": lambda x: functional.leaky_relu(x, first),
        "Clip": lambda x: torch.clamp(x, first, second),
        "HardSigmoid": lambda x: torch.clamp(first * x + second, 0, 1),
    }
    if name not in plain:
        raise NoMeaning(f"activation {name}")
    return plain[name]


@meaning("Gelu", domain=_DOMAIN)
def gelu(node: Static) -> Run:
    """Gives x * Phi(x), Phi the normal distribution function; Hendrycks and Gimpel, 1606.08415, section 2"""
    return functional.gelu


@meaning("BiasGelu", domain=_DOMAIN)
def bias_gelu(node: Static) -> Run:
    """Gives gelu(x + b)"""
    return lambda x, bias: functional.gelu(x + bias)


@meaning("FastGelu", domain=_DOMAIN)
def fast_gelu(node: Static) -> Run:
    """Gives gelu(x + b) by its approximation with tanh"""

    def run(x: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.gelu(x if bias is None else x + bias, approximate="tanh")

    return run


@meaning("QuickGelu", domain=_DOMAIN)
def quick_gelu(node: Static) -> Run:
    """Gives x * sigmoid(alpha x)"""
    alpha = node.float("alpha", 1.702)
    return lambda x: x * torch.sigmoid(alpha * x)


@meaning("BiasSplitGelu", domain=_DOMAIN)
def bias_split_gelu(node: Static) -> Run:
    """Gives a * gelu(b), where a and b are the halves of x + bias along the last axis"""

    def run(x: Tensor, bias: Tensor) -> Tensor:
        left, right = (x + bias).chunk(2, dim=-1)
        return left * functional.gelu(right)

    return run


@meaning("BiasAdd", domain=_DOMAIN)
def bias_add(node: Static) -> Run:
    """Gives x + bias + skip"""
    return lambda x, bias, skip: x + bias + skip


@meaning("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=_DOMAIN)
def skip_layer_normalization(node: Static) -> Run:
    """Gives the norm of s = x + skip + bias over the last axis, times scale, plus shift; and s"""
    epsilon = node.float("epsilon", 1e-12)
    simplified = node.node.op_type == "SkipSimplifiedLayerNormalization"

    def run(x: Tensor, skip: Tensor, scale: Tensor, *rest: Tensor | None) -> tuple[Tensor | None, ...]:
        shift, bias = (None, *rest, None)[:2] if simplified else (*rest, None, None)[:2]
        total = x + skip
        total = total if bias is None else total + bias
        if simplified:
            return functional.rms_norm(total, scale.shape, scale, epsilon), None, None, total
        return functional.layer_norm(total, scale.shape, scale, shift, epsilon), None, None, total

    return run


@meaning("EmbedLayerNormalization", domain=_DOMAIN)
def embed_layer_normalization(node: Static) -> Run:
    """Gives the norm of s = words[id] + positions[place] + segments[segment] over the last axis; and s"""
    epsilon, returns_mask = node.float("epsilon", 1e-12), node.outputs > 1

    def run(
        ids: Tensor,
        segment_ids: Tensor | None,
        words: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        scale: Tensor,
        shift: Tensor,
        mask: Tensor | None = None,
        places: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        at = positions[: ids.shape[1]] if places is None else positions[places.long()]
        total = words[ids.long()] + at
        if segments is not None and segment_ids is not None:
            total = total + segments[segment_ids.long()]
        y = functional.layer_norm(total, scale.shape, scale, shift, epsilon)
        counts = None
        if returns_mask:  # how many places are no padding
            counts = torch.zeros(len(ids), dtype=torch.int32, device=ids.device)
            counts = counts if mask is None else mask.sum(dim=1, dtype=torch.int32)
        return y, counts, total

    return run


@meaning("FusedMatMul", "TransposeMatMul", domain=_DOMAIN)
def fused_matmul(node: Static) -> Run:
    """Gives alpha * a b; ``trans`` swaps the last two axes, ``transBatch`` moves the first to their left"""
    alpha = node.float("alpha", 1.0)
    swaps = node.int("transA", 0), node.int("transB", 0)
    moves = node.int("transBatchA", 0), node.int("transBatchB", 0)

    def turned(x: Tensor, swap: int, move: int) -> Tensor:
        if x.dim() < 2:
            return x
        x = x.movedim(0, -2) if move else x
        return x.mT if swap else x

    def run(a: Tensor, b: Tensor) -> Tensor:
        y = turned(a, swaps[0], moves[0]) @ turned(b, swaps[1], moves[1])
        return y if alpha == 1 else y * alpha

    return run


@meaning("FusedGemm", domain=_DOMAIN)
def fused_gemm(node: Static) -> Run:
    """Gives activation(alpha * a' b' + beta * c)"""
    alpha, beta = node.float("alpha", 1.0), node.float("beta", 1.0)
    swap_a, swap_b = node.int("transA", 0), node.int("transB", 0)
    activation = fused_activation(node)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        y = (a.mT if swap_a else a) @ (b.mT if swap_b else b)
        y = y if alpha == 1 else y * alpha
        if c is not None:
            y = y + (c if beta == 1 else c * beta)
        return activation(y)

    return run


@meaning("FusedMatMulActivation", domain=_DOMAIN)
def fused_matmul_activation(node: Static) -> Run:
    """Gives activation(alpha * a b)"""
    product, activation = fused_matmul(node), fused_activation(node)
    return lambda a, b: activation(product(a, b))


@meaning("BiasSoftmax", domain=_DOMAIN)
def bias_softmax(node: Static) -> Run:
    """Gives softmax(x + b) over all axes from ``axis`` on, b broadcast over inner or over outer rows"""
    axis, inner = node.int("axis", 1), node.int("is_inner_broadcast", 1) == 1

    def run(x: Tensor, bias: Tensor) -> Tensor:
        rows = x.flatten(axis % x.dim()) if x.dim() else x
        parts = bias.reshape(-1, rows.shape[-1])
        flat = x.reshape(-1, rows.shape[-1])
        if inner:  # a row of the bias serves as many rows that follow each other
            added = parts.repeat_interleave(len(flat) // len(parts), dim=0)
        else:
            added = parts.repeat(len(flat) // len(parts), 1)
        return torch.softmax(flat + added, dim=-1).reshape(x.shape)

    return run


@meaning("Inverse", domain=_DOMAIN)
def inverse(node: Static) -> Run:
    """y[..., :, :] = the inverse of the matrix x[..., :, :]"""
    run: Run = torch.linalg.inv
    return run


@meaning("ComplexMul", "ComplexMulConj", domain=_DOMAIN)
def complex_product(node: Static) -> Run:
    """Gives a b, or a times the conjugate of b: real and imaginary parts along the last axis"""
    conjugated = node.node.op_type == "ComplexMulConj"

    def run(a: Tensor, b: Tensor) -> Tensor:
        right = torch.view_as_complex(b.contiguous())
        return torch.view_as_real(
            torch.view_as_complex(a.contiguous()) * (right.conj() if conjugated else right)
        )

    return run


@meaning("CDist", domain=_DOMAIN)
def distances(node: Static) -> Run:
    """y[i, j] = |a_i - b_j|, or its square"""
    squared = node.text("metric", "sqeuclidean") == "sqeuclidean"

    def run(a: Tensor, b: Tensor) -> Tensor:
        differences = (a[:, None] - b).square().sum(dim=-1)
        return differences if squared else torch.sqrt(differences)

    return run


@meaning("ExpandDims", domain=_DOMAIN, host=(1,))
def expand_dims(node: Static) -> Run:
    """Gives x with an axis of size 1 at the given place"""
    return lambda x, axis: x.unsqueeze(int(axis))


@meaning("FusedConv", domain=_DOMAIN)
def fused_conv(node: Static) -> Run:
    """Gives activation(convolution of x, plus z)"""
    convolve, activation = convolution(node), fused_activation(node)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None, added: Tensor | None = None) -> Tensor:
        y = convolve(x, weight, bias)
        return activation(y if added is None else y + added)

    return run


@meaning("NhwcMaxPool", domain=_DOMAIN)
def channels_last_max_pool(node: Static) -> Run:
    """y[n, ..., c] = max of x[n, ..., c] over windows in space"""
    pool = max_pool(node)
    return lambda x: pool(x.movedim(-1, 1)).movedim(1, -1)


@meaning("ConvTransposeWithDynamicPads", domain=_DOMAIN, host=(2,))
def conv_transpose_with_dynamic_pads(node: Static) -> Run:
    """Gives the transposed convolution of x without padding, cut by pads that are an input"""
    whole = conv_transpose(node)
    if "pads" in node.node.attributes or node.text("auto_pad", "NOTSET") != "NOTSET":
        raise NoMeaning("pads in attributes")

    def run(x: Tensor, weight: Tensor, pads: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        y: Tensor = whole(x, weight, bias)
        if pads is None:
            return y
        amounts = [-amount for amount in numbers_of(pads)]
        return padded(y, amounts[: len(amounts) // 2], amounts[len(amounts) // 2 :])

    return run
