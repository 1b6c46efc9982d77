"""Attention as ONNX Runtime fuses it: Attention, MultiHeadAttention, GroupQueryAttention and their kin."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.attention import (
    apart,
    attend,
    bias_where,
    cap,
    distances,
    repeat_heads,
    rotate,
    together,
)
from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning

_DOMAIN = "com.microsoft"


def key_mask(mask: Tensor, batch: int, queries: int, keys: int) -> Tensor:
    """Return which keys a query may see, broadcastable to ``[batch, heads, queries, keys]``.

    Args:
        mask: ``[batch]`` with numbers of keys, ``[2 * batch]`` with ends and then starts, or ones and zeros
            ``[batch, keys]``, ``[batch, queries, keys]``, ``[batch, 1, most queries, most keys]``.
        batch: number of samples.
        queries: number of queries, the last ones of all positions.
        keys: number of keys.
    """
    if mask.dim() == 1:
        places = torch.arange(keys, device=mask.device)
        seen = places < mask[:batch, None]
        if len(mask) == 2 * batch:
            seen = seen & (places >= mask[batch:, None])
        return seen[:, None, None]
    if mask.dim() == 2:
        return (mask > 0)[:, None, None]
    if mask.dim() == 3:
        return (mask > 0)[:, None]
    return mask[:, :, keys - queries : keys, :keys] > 0


def mask_scores(
    query: Tensor,
    keys: int,
    mask: Tensor | None,
    added: Tensor | None,
    causal: bool,
    filtered: float,
) -> Tensor | None:
    """Return what is added to the scores of queries ``[batch, heads, queries, places]``, or None.

    Padding gets ``filtered``, as much as that is; keys after a query are never seen.
    """
    queries = query.shape[2]
    bias = None
    if mask is not None:
        seen = key_mask(mask, query.shape[0], queries, keys)
        bias = torch.zeros(seen.shape, dtype=query.dtype, device=query.device).masked_fill(~seen, filtered)
    if causal and queries > 1:
        ahead = distances(queries, keys, keys - queries, query.device) >= 0
        bias = bias_where(ahead, query.dtype) if bias is None else bias + bias_where(ahead, query.dtype)
    if added is not None:
        bias = added if bias is None else bias + added
    return bias


@meaning("Attention", domain=_DOMAIN)
def projected_attention(node: Static) -> Run:
    """q, k, v = x w + b, three parts of one product; y = attention of these"""
    heads, sizes = node.int("num_heads"), node.ints("qkv_hidden_sizes")
    causal, scale = node.int("unidirectional", 0) == 1, node.float("scale", 0.0)
    filtered = node.float("mask_filter_value", -10000.0)
    if node.int("do_rotary", 0) or node.int("past_present_share_buffer", 0):
        raise NoMeaning("do_rotary and past_present_share_buffer")

    def run(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        past: Tensor | None = None,
        added: Tensor | None = None,
        _past_length: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        projected = functional.linear(x, weight.mT, bias)
        parts = torch.split(projected, sizes or [weight.shape[1] // 3] * 3, dim=2)
        query, key, value = (apart(part, heads) for part in parts)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        total = mask_scores(query, key.shape[2], mask, added, causal, filtered)
        y = attend(query, key, value, total, scale or 1 / math.sqrt(query.shape[-1]))
        if key.shape == value.shape:
            return together(y), torch.stack([key, value])
        return (together(y),)

    return run


@meaning("MultiHeadAttention", domain=_DOMAIN)
def multi_head_attention(node: Static) -> Run:
    """Gives attention of queries, keys and values, to which a bias may be added first"""
    heads, scale = node.int("num_heads"), node.float("scale", 0.0)
    causal, filtered = node.int("unidirectional", 0) == 1, node.float("mask_filter_value", -10000.0)
    if node.has(8) or node.has(9):
        raise NoMeaning("a cache shared between past and present")
    shows_scores = node.outputs > 3

    def run(
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        bias: Tensor | None = None,
        mask: Tensor | None = None,
        added: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        q, k, v = _operands(query, key, value, bias, heads)
        if past_key is not None and past_value is not None:
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        total = mask_scores(q, k.shape[2], mask, added, causal, filtered)
        factor = scale or 1 / math.sqrt(q.shape[-1])
        if not shows_scores:
            return together(attend(q, k, v, total, factor)), k, v
        scores = q @ k.mT * factor
        scores = scores if total is None else scores + total
        return together(torch.softmax(scores, dim=-1) @ v), k, v, scores

    return run


def _operands(
    query: Tensor, key: Tensor | None, value: Tensor | None, bias: Tensor | None, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values ``[batch, heads, sequence, places]`` of any of the packed forms."""
    if query.dim() == 5:  # [batch, sequence, heads, 3, places]
        query, key, value = (part.flatten(2) for part in query.unbind(3))
    elif key is None:
        query, key, value = query.chunk(3, dim=2)
    elif key.dim() == 5:  # [batch, keys, heads, 2, places]
        key, value = (part.flatten(2) for part in key.unbind(3))
    if key is None or value is None:
        raise ValueError("keys come without values")
    if key.dim() == 4:  # from a cache, which holds the bias
        query = query if bias is None else query + bias[: query.shape[2]]
        return apart(query, heads), key, value
    given = [query, key, value]
    if bias is not None:
        parts = torch.split(bias, [part.shape[2] for part in given])
        given = [part + own for part, own in zip(given, parts, strict=True)]
    query, key, value = (apart(part, heads) for part in given)
    return query, key, value


@meaning("GroupQueryAttention", domain=_DOMAIN, host=(6,))
def group_query_attention(node: Static) -> Run:
    """Gives causal attention, a head of keys and values for every row of query heads; rotated first if asked

    The cache has room behind what is in it: sample b has ``seqlens_k[b] + 1`` keys with the new ones, which
    follow the past of that sample, and stand first where all keys are new.
    """
    heads, key_heads = node.int("num_heads"), node.int("kv_num_heads")
    scale, softcap = node.float("scale", 0.0), node.float("softcap", 0.0)
    window, rotary = node.int("local_window_size", -1), node.int("do_rotary", 0) == 1
    interleaved, smooth = node.int("rotary_interleaved", 0) == 1, node.int("smooth_softmax", 0) == 1
    causal = node.int("causal", 1) == 1
    if any(node.has(index) for index in range(12, 16)):
        raise NoMeaning("quantized caches and norms of heads")
    if node.outputs > 3:
        raise NoMeaning("its scores as an output")

    def run(
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        past_key: Tensor | None,
        past_value: Tensor | None,
        last: Tensor,
        total_length: Tensor,
        cosines: Tensor | None = None,
        sines: Tensor | None = None,
        given_positions: Tensor | None = None,
        added: Tensor | None = None,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if key is None or value is None:
            places = query.shape[2] // (heads + 2 * key_heads)
            query, key, value = torch.split(
                query, [heads * places, key_heads * places, key_heads * places], 2
            )
        q, k, v = apart(query, heads), apart(key, key_heads), apart(value, key_heads)
        batch, queries, total = q.shape[0], q.shape[2], int(total_length)
        # all new: nothing of the past counts, whatever the padding of a sample
        start = last.flatten().long() + 1 - queries
        start = torch.zeros_like(start) if queries == total else start
        start = start.to(q.device).expand(batch)
        places_in_cache = start[:, None] + torch.arange(queries, device=q.device)
        if rotary and cosines is not None and sines is not None:
            turned = places_in_cache if given_positions is None else given_positions.long()
            angles = cosines[turned][:, None], sines[turned][:, None]
            q, k = rotate(q, *angles, interleaved), rotate(k, *angles, interleaved)
        k, v = _append(past_key, k, places_in_cache, total), _append(past_value, v, places_in_cache, total)
        before = distances(queries, k.shape[2], start, q.device)
        allowed = before >= 0 if causal else before >= 1 - queries
        if window > 0:
            allowed = allowed & (before < window)
        bias = bias_where(allowed, q.dtype)
        if added is not None:
            bias = bias + functional.pad(added, (0, k.shape[2] - added.shape[3]), value=-math.inf)
        factor = scale or 1 / math.sqrt(q.shape[-1])
        if not (softcap or smooth or sinks is not None):
            return together(attend(q, k, v, bias, factor)), k, v
        scores = cap(q @ repeat_heads(k, heads).mT * factor, softcap) + bias
        if smooth or sinks is not None:  # one more place, which nothing is read from
            sink = scores.new_zeros(heads) if sinks is None else sinks.to(scores.dtype)
            scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:3], 1)], dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : k.shape[2]]
        return together(weights @ repeat_heads(v, heads)), k, v

    return run


def _append(past: Tensor | None, new: Tensor, places: Tensor, total: int) -> Tensor:
    """Return a cache ``[batch, heads, length, places]`` with new keys at places ``[batch, new]``."""
    if past is None:
        return new
    length = max(past.shape[2], total)
    cache = functional.pad(past, (0, 0, 0, length - past.shape[2]))
    return cache.scatter(2, places[:, None, :, None].expand_as(new), new)


@meaning("RotaryEmbedding", domain=_DOMAIN)
def fused_rotary_embedding(node: Static) -> Run:
    """Gives pairs of places of x turned by the angles of their positions; one position is the first of all"""
    given_heads, interleaved = node.int("num_heads", 0), node.int("interleaved", 0) == 1
    scale = node.float("scale", 1.0)

    def run(x: Tensor, positions: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        merged = x.dim() == 3
        sequence = x.shape[1] if merged else x.shape[2]
        if positions.numel() == 1:
            steps = torch.arange(sequence, device=positions.device)
            positions = (positions.flatten() + steps).expand(x.shape[0], -1)
        angles = cosines[positions.long()][:, None], sines[positions.long()][:, None]
        heads = given_heads or x.shape[-1] // (2 * cosines.shape[-1])
        turned = rotate(apart(x, heads) if merged else x, *angles, interleaved) * scale
        return together(turned) if merged else turned

    return run
