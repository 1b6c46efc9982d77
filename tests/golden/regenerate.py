"""Writes the golden groups anew: ``python tests/golden/regenerate.py``; then read the difference by eye.

Look for groups that grew coarser (fewer and larger, or more tensors in one), and for frozen ones whose
reason does not convince. A file lists, for each group, its kind, size, the reason if it is frozen, and its
members as ``tensor/axis``, with ``+`` behind an axis that is summed over.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import onnx
import onnx_ir as ir
from cutting import graph
from generated import generated_model

from onnxprune.analyze import analyze


def attention_block() -> ir.Model:
    """A pre-norm transformer block, with q, k and v from one product."""
    body = """
        n1 = LayerNormalization(x, norm1_s, norm1_b) p = MatMul(n1, qkv_w) b = Add(p, qkv_b)
        j = Reshape(b, joint) m = Transpose<perm = [2, 0, 3, 1, 4]>(j)
        q = Gather(m, i0) k = Gather(m, i1) v = Gather(m, i2)
        kt = Transpose<perm = [0, 1, 3, 2]>(k) logits = MatMul(q, kt) scaled = Mul(logits, scale)
        weights = Softmax(scaled) mixed = MatMul(weights, v) moved = Transpose<perm = [0, 2, 1, 3]>(mixed)
        merged = Reshape(moved, whole) o = MatMul(merged, out_w) r = Add(x, o)
        n2 = LayerNormalization(r, norm2_s, norm2_b) u = MatMul(n2, up_w) ub = Add(u, up_b) g = Erf(ub)
        d = MatMul(g, down_w) y = Add(r, d)
    """
    constants = {
        "norm1_s": (12,), "norm1_b": (12,), "norm2_s": (12,), "norm2_b": (12,), "qkv_w": (12, 36),
        "qkv_b": (36,), "out_w": (12, 12), "up_w": (12, 24), "up_b": (24,), "down_w": (24, 12),
        "joint": [0, 5, 3, 3, 4], "whole": [0, 5, 12], "scale": np.array(0.5, np.float32),
        "i0": np.array(0), "i1": np.array(1), "i2": np.array(2),
    }  # fmt: skip
    return graph(body, inputs="float[N,5,12] x", constants=constants)


def grouped_query_attention() -> ir.Model:
    """Six query heads share two key and value heads, repeated by Expand."""
    body = """
        qp = MatMul(x, q_w) kp = MatMul(x, k_w) vp = MatMul(x, v_w)
        qr = Reshape(qp, q_heads) kr = Reshape(kp, kv_heads) vr = Reshape(vp, kv_heads)
        q = Transpose<perm = [0, 2, 1, 3]>(qr) k5 = Transpose<perm = [0, 2, 1, 3]>(kr)
        v5 = Transpose<perm = [0, 2, 1, 3]>(vr)
        ku = Unsqueeze(k5, two) vu = Unsqueeze(v5, two) ke = Expand(ku, repeat) ve = Expand(vu, repeat)
        k = Reshape(ke, all_heads) v = Reshape(ve, all_heads)
        kt = Transpose<perm = [0, 1, 3, 2]>(k) logits = MatMul(q, kt) weights = Softmax(logits)
        mixed = MatMul(weights, v) moved = Transpose<perm = [0, 2, 1, 3]>(mixed)
        merged = Reshape(moved, whole) y = MatMul(merged, o_w)
    """
    constants = {
        "q_w": (12, 24), "k_w": (12, 8), "v_w": (12, 8), "o_w": (24, 12), "q_heads": [0, 5, 6, 4],
        "kv_heads": [0, 5, 2, 4], "two": [2], "repeat": [1, 2, 3, 5, 4], "all_heads": [-1, 6, 5, 4],
        "whole": [0, 5, 24],
    }  # fmt: skip
    return graph(body, inputs="float[N,5,12] x", constants=constants)


def inverted_residual() -> ir.Model:
    """Expand, depthwise, squeeze and excite, project, residual sum; then a dense layer."""
    body = """
        stem = Conv(x, stem_w) e = Conv(stem, expand_w, expand_b) a = HardSwish(e)
        d = Conv<group = 12, pads = [1, 1, 1, 1]>(a, depth_w) p = GlobalAveragePool(d) s = Conv(p, squeeze_w)
        r = Relu(s) t = Conv(r, excite_w) g = HardSigmoid(t) m = Mul(d, g) o = Conv(m, project_w)
        sum = Add(stem, o) pool = GlobalAveragePool(sum) f = Flatten(pool)
        y = Gemm<transB = 1>(f, head_w, head_b)
    """
    constants = {
        "stem_w": (6, 3, 3, 3), "expand_w": (12, 6, 1, 1), "expand_b": (12,), "depth_w": (12, 1, 3, 3),
        "squeeze_w": (4, 12, 1, 1), "excite_w": (12, 4, 1, 1), "project_w": (6, 12, 1, 1), "head_w": (5, 6),
        "head_b": (5,),
    }  # fmt: skip
    return graph(body, constants=constants)


def shuffle_unit() -> ir.Model:
    """Half of the channels pass, the others are convolved, and both are shuffled together."""
    body = """
        stem = Conv(x, stem_w) left, right = Split<axis = 1>(stem) a = Conv(right, a_w) r = Relu(a)
        d = Conv<group = 4, pads = [1, 1, 1, 1]>(r, depth_w) b = Conv(d, b_w) j = Concat<axis = 1>(left, b)
        s = Reshape(j, halves) t = Transpose<perm = [0, 2, 1, 3, 4]>(s) u = Reshape(t, whole)
        first, second = Split<axis = 1>(u) c = Conv(second, c_w) k = Concat<axis = 1>(first, c)
        y = Conv(k, head_w)
    """
    constants = {
        "stem_w": (8, 3, 1, 1), "a_w": (4, 4, 1, 1), "depth_w": (4, 1, 3, 3), "b_w": (4, 4, 1, 1),
        "c_w": (4, 4, 1, 1), "head_w": (5, 8, 1, 1), "halves": [0, 2, 4, 6, 6], "whole": [0, 8, 6, 6],
    }  # fmt: skip
    return graph(body, constants=constants)


def grouped_bottleneck() -> ir.Model:
    """As ResNeXt: reduce, grouped convolution, widen, sum with a projected shortcut."""
    body = """
        stem = Conv(x, stem_w) a = Conv(stem, reduce_w) r = Relu(a)
        g = Conv<group = 4, pads = [1, 1, 1, 1]>(r, group_w) q = Relu(g) b = Conv(q, widen_w)
        s = Conv(stem, shortcut_w) sum = Add(b, s) t = Relu(sum) y = Conv(t, head_w)
    """
    constants = {
        "stem_w": (6, 3, 1, 1), "reduce_w": (8, 6, 1, 1), "group_w": (8, 2, 3, 3), "widen_w": (10, 8, 1, 1),
        "shortcut_w": (10, 6, 1, 1), "head_w": (5, 10, 1, 1),
    }  # fmt: skip
    return graph(body, constants=constants)


def exported(path: Path) -> ir.Model:
    """Read a model that ``make_models.py`` has written."""
    return ir.from_proto(onnx.load_model_from_string(gzip.decompress(path.read_bytes())))


MODELS: dict[str, Callable[[], ir.Model]] = {
    "attention_block": attention_block,
    "generated_4": lambda: ir.from_proto(generated_model(4, 6)),
    "grouped_bottleneck": grouped_bottleneck,
    "grouped_query_attention": grouped_query_attention,
    "inverted_residual": inverted_residual,
    "shuffle_unit": shuffle_unit,
    **{
        path.name.removesuffix(".onnx.gz"): partial(exported, path)
        for path in sorted((Path(__file__).parent / "models").glob("*.onnx.gz"))
    },
}


def described(model: ir.Model) -> list[dict[str, object]]:
    """Return the groups of a model as plain values."""
    return [
        {
            "name": group.name,
            "kind": group.kind,
            "size": group.size,
            "frozen": group.frozen,
            "members": [f"{m.tensor}/{m.axis}{'+' if m.contracted else ''}" for m in group.members],
        }
        for group in analyze(model).groups
    ]


def main() -> None:
    """Write a file for every model."""
    for name, build in MODELS.items():
        lines = ",\n".join(json.dumps(group) for group in described(build()))
        (Path(__file__).parent / f"{name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
