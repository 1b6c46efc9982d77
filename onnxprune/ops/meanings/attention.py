"""Attention as standard operators: Attention, RotaryEmbedding, TensorScatter."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.base import Run, Static, meaning

#: What Attention's fourth output holds, by its attribute.
_SCALED, _CAPPED, _BIASED, _WEIGHTS = range(4)


def apart(x: Tensor, heads: int) -> Tensor:
    """Return ``[batch, sequence, heads * places]`` as ``[batch, heads, sequence, places]``."""
    return x.reshape(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2)


def together(x: Tensor) -> Tensor:
    """Return ``[batch, heads, sequence, places]`` as ``[batch, sequence, heads * places]``."""
    return x.transpose(1, 2).flatten(2)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Return ``[batch, heads, sequence, places]``, every head of keys or values once for its queries."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def cap(scores: Tensor, softcap: float) -> Tensor:
    """Return ``softcap * tanh(scores / softcap)``, the scores where it is 0."""
    return softcap * torch.tanh(scores / softcap) if softcap else scores


def softmax_or_zero(scores: Tensor) -> Tensor:
    """Return the softmax over the last axis; a row of minus infinity alone gives zeros."""
    empty = (scores == -math.inf).all(dim=-1, keepdim=True)
    return torch.softmax(scores.masked_fill(empty, 0), dim=-1).masked_fill(empty, 0)


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return ``softmax(scale * query key^T + bias) value``, all ``[batch, heads, sequence, places]``."""
    if bias is not None:  # the kernels want a mask with all axes
        bias = bias.to(query.dtype).expand(*query.shape[:-1], key.shape[-2])
    return functional.scaled_dot_product_attention(
        query,
        repeat_heads(key, query.shape[1]),
        repeat_heads(value, query.shape[1]),
        attn_mask=bias,
        scale=scale,
    )


def bias_where(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where attention is allowed, minus infinity elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, -math.inf)


def distances(queries: int, keys: int, offset: Tensor | int, device: torch.device) -> Tensor:
    """Return how far keys lie before queries, ``[..., queries, keys]``; query 0 stands at ``offset``."""
    rows = torch.arange(queries, device=device)[:, None]
    columns = torch.arange(keys, device=device)
    return rows - columns + (offset[:, None, None, None] if isinstance(offset, Tensor) else offset)


@meaning("Attention")
def attention(node: Static) -> Run:
    """Gives softmax(cap(scale * q k^T) + mask) v, with a cache in front of keys and values if there is one"""
    heads, key_heads = node.int("q_num_heads", 0), node.int("kv_num_heads", 0)
    scale, softcap = node.float("scale", 0.0), node.float("softcap", 0.0)
    causal, mode = node.int("is_causal", 0) == 1, node.int("qk_matmul_output_mode", _SCALED)
    windows = node.int("left_window_size", -1), node.int("right_window_size", -1)
    precision = node.dtype("softmax_precision")
    plain = not softcap and not precision and node.outputs < 4

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        merged = query.dim() == 3
        if merged:
            query, key, value = apart(query, heads), apart(key, key_heads), apart(value, key_heads)
        offset: Tensor | int = 0
        if past_key is not None and past_value is not None:
            offset = past_key.shape[2]
            key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        elif lengths is not None:
            offset = lengths.flatten() - query.shape[2]
        bias = _bias(query, key, mask, offset, lengths, causal, windows)
        factor = scale or 1 / math.sqrt(query.shape[-1])
        if plain:
            y, shown = attend(query, key, value, bias, factor), None
        else:
            y, shown = _attend_in_steps(query, key, value, bias, factor)
        found = (together(y) if merged else y), key, value, shown
        return tuple(part for part in found if part is not None)

    def _attend_in_steps(
        query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, factor: float
    ) -> tuple[Tensor, Tensor]:
        root = math.sqrt(factor)
        scaled = (query * root) @ (repeat_heads(key, query.shape[1]) * root).mT
        capped = cap(scaled, softcap)
        biased = capped if bias is None else capped + bias
        wide = precision or biased.dtype
        weights = softmax_or_zero(biased.to(wide)).to(query.dtype)
        if bias is not None:  # a score of infinity may hide that a row was masked
            weights = weights.masked_fill((bias == -math.inf).all(dim=-1, keepdim=True), 0)
        shown = {_SCALED: scaled, _CAPPED: capped, _BIASED: biased, _WEIGHTS: weights}[mode]
        return weights @ repeat_heads(value, query.shape[1]), shown

    return run


def _bias(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    offset: Tensor | int,
    lengths: Tensor | None,
    causal: bool,
    windows: tuple[int, int],
) -> Tensor | None:
    """Return what is added to the scores ``[batch, heads, queries, keys]``, or None."""
    keys = key.shape[2]
    if mask is not None:
        bias: Tensor | None = bias_where(mask, query.dtype) if mask.dtype == torch.bool else mask
        if bias is not None and bias.shape[-1] < keys:
            bias = functional.pad(bias, (0, keys - bias.shape[-1]), value=-math.inf)
    else:
        bias = None
    allowed = None
    if causal or max(windows) >= 0:
        before = distances(query.shape[2], keys, offset, query.device)
        left, right = windows
        right = 0 if causal and right < 0 else min(right, 0) if causal else right
        allowed = torch.ones_like(before, dtype=torch.bool)
        if left >= 0:
            allowed &= before <= left
        if right >= 0:
            allowed &= before >= -right
    if lengths is not None:
        present = torch.arange(keys, device=query.device) < lengths.flatten()[:, None, None, None]
        allowed = present if allowed is None else allowed & present
    if allowed is None:
        return bias
    added = bias_where(allowed, query.dtype)
    return added if bias is None else bias + added


def rotate(x: Tensor, cosines: Tensor, sines: Tensor, interleaved: bool) -> Tensor:
    """Turn pairs of places by angles: ``(a cos - b sin, a sin + b cos)``; Su et al., RoFormer, equation 34.

    Args:
        x: ``[batch, heads, sequence, places]``; places behind twice the angles stay as they are.
        cosines: ``[batch, 1, sequence, angles]``.
        sines: as cosines.
        interleaved: whether a pair stands side by side, not in the first and the second half.
    """
    turned = 2 * cosines.shape[-1]
    part, rest = x[..., :turned], x[..., turned:]
    if interleaved:
        first, second = part[..., 0::2], part[..., 1::2]
    else:
        first, second = part.chunk(2, dim=-1)
    halves = first * cosines - second * sines, first * sines + second * cosines
    result = torch.stack(halves, dim=-1).flatten(-2) if interleaved else torch.cat(halves, dim=-1)
    return torch.cat([result, rest], dim=-1) if rest.shape[-1] else result


@meaning("RotaryEmbedding")
def rotary_embedding(node: Static) -> Run:
    """Gives pairs of places of x turned by the angles of their positions"""
    heads, interleaved = node.int("num_heads", 0), node.int("interleaved", 0) == 1

    def run(x: Tensor, cosines: Tensor, sines: Tensor, positions: Tensor | None = None) -> Tensor:
        if positions is not None:
            cosines, sines = cosines[positions.long()], sines[positions.long()]
        merged = x.dim() == 3
        turned = rotate(apart(x, heads) if merged else x, cosines[:, None], sines[:, None], interleaved)
        return together(turned) if merged else turned

    return run


@meaning("TensorScatter")
def tensor_scatter(node: Static) -> Run:
    """Gives a cache with an update written along ``axis``, for each sample from a position of its own on"""
    given_axis, circular = node.int("axis", -2), node.text("mode", "linear") == "circular"

    def run(cache: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
        axis = given_axis % cache.dim()
        steps = torch.arange(update.shape[axis], device=cache.device)
        if starts is None:
            starts = torch.zeros(cache.shape[0], dtype=torch.int64, device=cache.device)
        places = starts.long()[:, None] + steps
        if circular:
            places = places % cache.shape[axis]
        shape = [1] * cache.dim()
        shape[0], shape[axis] = places.shape
        return cache.scatter(axis, places.reshape(shape).expand(update.shape), update)

    return run
