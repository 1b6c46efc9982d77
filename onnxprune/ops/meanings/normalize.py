"""Normalisations and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning


@meaning("BatchNormalization")
def batch_norm(node: Static) -> Run:
    """``(x - mean) / sqrt(var + epsilon) * scale + bias`` by channel, with the kept statistics.

    In training they are those of the batch, and the kept ones move: ``momentum`` is the share that stays,
    where torch's is the share that is new. As in torch, the kept variance is the unbiased one.
    """
    epsilon, momentum = node.float("epsilon", 1e-5), node.float("momentum", 0.9)
    always, mode = node.version >= 14 and bool(node.int("training_mode")), node.mode
    if node.version < 9 and not node.int("spatial", 1):
        raise NoMeaning("BatchNormalization with spatial=0")
    if node.outputs > 1:
        return _training_outputs(epsilon, momentum, always)

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        if x.dtype != mean.dtype and not (x.is_cuda or x.dtype == torch.bfloat16):
            mean, variance = mean.to(x.dtype), variance.to(x.dtype)
        training = always or mode.training
        if x.dtype != scale.dtype:
            scale, bias = scale.to(mean.dtype), bias.to(mean.dtype)
        return F.batch_norm(x, mean, variance, scale, bias, training, 1 - momentum, epsilon)

    return run


def _training_outputs(epsilon: float, momentum: float, training: bool) -> Run:
    """Statistics that are outputs: the standard's own training mode, with the biased variance."""

    def run(
        x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if not training:
            return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon), mean, variance
        y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        new_mean = x.mean(axes)
        new_variance = x.var(axes, unbiased=False)
        return (
            y,
            (mean * momentum + new_mean * (1 - momentum)).to(mean.dtype),
            (variance * momentum + new_variance * (1 - momentum)).to(variance.dtype),
        )

    return run


@meaning("InstanceNormalization")
def instance_norm(node: Static) -> Run:
    """By sample and channel."""
    epsilon = node.float("epsilon", 1e-5)
    return lambda x, scale, bias: F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@meaning("GroupNormalization")
def group_norm(node: Static) -> Run:
    """By sample and group of channels; before opset 21, scale and bias were one number for each group."""
    groups, epsilon, by_group = node.int("num_groups"), node.float("epsilon", 1e-5), node.version < 21

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if by_group:
            each = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


@meaning("LayerNormalization")
def layer_norm(node: Static) -> Run:
    """Over the last axes, from ``axis`` on; also gives the mean and the inverse deviation."""
    axis, epsilon, wanted = node.int("axis", -1), node.float("epsilon", 1e-5), node.outputs
    stash = node.dtype("stash_type", 1) or torch.float32

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor | tuple[Tensor, ...]:
        shape = x.shape[axis:]
        if scale.shape == shape and (bias is None or bias.shape == shape):
            y = F.layer_norm(x, shape, scale, bias, epsilon)
        else:
            y = F.layer_norm(x, shape, eps=epsilon) * scale
            y = y if bias is None else y + bias
        if wanted < 2:
            return y
        axes = list(range(axis % x.dim(), x.dim()))
        wide = x.to(torch.promote_types(x.dtype, stash))
        variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
        return y, mean, torch.rsqrt(variance + epsilon)

    return run


@meaning("RMSNormalization", "SimplifiedLayerNormalization")  # the latter is ONNX Runtime's own
def rms_norm(node: Static) -> Run:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the last axes (Zhang and Sennrich 2019)."""
    axis, epsilon = node.int("axis", -1), node.float("epsilon", 1e-5)
    stash = node.dtype("stash_type", 1) or torch.float32
    return lambda x, scale: root_mean_square(x, scale, axis, epsilon, stash)


def root_mean_square(x: Tensor, scale: Tensor, axis: int, epsilon: float, stash: torch.dtype) -> Tensor:
    """Return ``x / sqrt(mean(x^2) + epsilon) * scale`` in the type of x, with the mean in a wider one."""
    wide = x.to(torch.promote_types(x.dtype, stash))
    shape = x.shape[axis:]
    return F.rms_norm(wide, shape, eps=epsilon).to(x.dtype) * scale


@meaning("LpNormalization")
def lp_norm(node: Static) -> Run:
    """Divided by the p-norm along an axis; 0 where that is 0."""
    axis, p = node.int("axis", -1), node.int("p", 2)

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)

    return run


@meaning("LRN")
def local_response_norm(node: Static) -> Run:
    """Divided by a power of the squares of neighbouring channels (Krizhevsky et al. 2012)."""
    alpha, beta = node.float("alpha", 1e-4), node.float("beta", 0.75)
    bias, size = node.float("bias", 1.0), node.int("size")

    def run(x: Tensor) -> Tensor:
        before, behind = (size - 1) // 2, size - 1 - (size - 1) // 2
        squares = F.pad((x * x).transpose(1, -1), (before, behind))
        total = squares.unfold(-1, size, 1).sum(-1).transpose(1, -1)
        return x / (bias + alpha / size * total) ** beta

    return run


@meaning("MeanVarianceNormalization")
def mean_variance_norm(node: Static) -> Run:
    """``(x - mean) / (deviation + 1e-9)`` along axes."""
    axes = node.ints("axes", (0, 2, 3)) or []

    def run(x: Tensor) -> Tensor:
        mean = x.mean(axes, keepdim=True)
        variance = (x * x).mean(axes, keepdim=True) - mean * mean
        return (x - mean) / (torch.sqrt(variance) + 1e-9)

    return run


_SOFTMAXES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Hardmax": lambda x, axis: torch.zeros_like(x).scatter_(axis, x.argmax(axis, keepdim=True), 1),
}


@meaning(*_SOFTMAXES)
def softmax(node: Static) -> Run:
    """Along one axis; before opset 13, along all axes from ``axis`` on at once."""
    function = _SOFTMAXES[node.node.op_type]
    if node.version >= 13:
        axis = node.int("axis", -1)
        return lambda x: function(x, axis)
    first = node.int("axis", 1)

    def run(x: Tensor) -> Tensor:
        split = first % x.dim() if x.dim() and first < x.dim() else x.dim()
        rows = math.prod(x.shape[:split])
        return function(x.reshape(rows, -1), 1).reshape(x.shape)

    return run
