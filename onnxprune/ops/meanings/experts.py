"""Mixtures of experts as ONNX Runtime fuses them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "identity": lambda x: x,
}


@meaning("MoE", domain="com.microsoft")
def mixture_of_experts(node: Static) -> Run:
    """Gives sum_e gate_e * ((f(x u_e' + b_e) [* (x g_e' + d_e)]) w_e' + c_e) over the best ``k`` experts

    A fused swiglu has two rows of u for each hidden unit, side by side (``swiglu_fusion`` 1) or in two halves
    (2): ``a sigmoid(alpha a) (l + beta)``, both kept below ``swiglu_limit``.
    """
    name, best = node.text("activation_type", "relu"), node.int("k", 1)
    normalized = node.int("normalize_routing_weights", 0) == 1
    if node.int("use_sparse_mixer", 0) or (name != "swiglu" and name not in _ACTIVATIONS):
        raise NoMeaning(f"a sparse mixer, or activation {name}")
    fusion, limit = node.int("swiglu_fusion", 0), node.float("swiglu_limit", float("inf"))
    alpha, beta = node.float("activation_alpha", 1.0), node.float("activation_beta", 0.0)

    def swiglu(x: Tensor) -> Tensor:
        gate, linear = (x[..., 0::2], x[..., 1::2]) if fusion == 1 else x.chunk(2, dim=-1)
        gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
        return gate * torch.sigmoid(alpha * gate) * (linear + beta)

    def run(
        x: Tensor,
        scores: Tensor,
        up: Tensor,
        up_bias: Tensor | None,
        down: Tensor,
        down_bias: Tensor | None = None,
        gate: Tensor | None = None,
        gate_bias: Tensor | None = None,
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(torch.softmax(scores, dim=-1), best, dim=-1)
        if normalized:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(rows)
        for expert in range(up.shape[0]):
            picked, place = (chosen == expert).nonzero(as_tuple=True)
            if not len(picked):
                continue
            inner = functional.linear(rows[picked], up[expert], None if up_bias is None else up_bias[expert])
            hidden = swiglu(inner) if name == "swiglu" else _ACTIVATIONS[name](inner)
            if gate is not None:
                own = None if gate_bias is None else gate_bias[expert]
                hidden = hidden * functional.linear(rows[picked], gate[expert], own)
            part = functional.linear(hidden, down[expert], None if down_bias is None else down_bias[expert])
            y = y.index_add(0, picked, part * weights[picked, place, None])
        return y.reshape(x.shape)

    return run
