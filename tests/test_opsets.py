"""The same network in every opset from 7 to 24: attributes of then, inputs of now."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import Constant, check_cut, graph, open_groups


def network(opset: int) -> ir.Model:
    """A residual network, and every operator whose sizes moved from attributes to inputs."""

    def since(version: int, now: str, then: str) -> str:
        return now if opset >= version else then

    body = " ".join(
        [
            "h = Conv<pads = [1, 1, 1, 1]>(x, a_w, a_b)",
            since(9, "n = BatchNormalization(h, s, b, m, v)",
                  "n = BatchNormalization<spatial = 1>(h, s, b, m, v)"),
            since(11, "r = Clip(n, low, high)", "r = Clip<min = 0.0, max = 6.0>(n)"),
            "f = Conv<pads = [1, 1, 1, 1]>(r, r_w) e = Add(f, r)",
            since(18, "p = Pad(e, space, zero, last_axes)",
                  since(11, "p = Pad(e, pads)", "p = Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(e)")),
            "q = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(p)",
            since(11, "u = Resize(q, none, scales)", since(10, "u = Resize(q, scales)",
                  since(9, "u = Upsample(q, scales)", "u = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(q)"))),
            since(10, "c = Slice(u, start, end, one)", "c = Slice<axes = [1], starts = [1], ends = [7]>(u)"),
            since(13, "i, j = Split<axis = 1>(c, parts)", "i, j = Split<axis = 1, split = [2, 4]>(c)"),
            "k = Concat<axis = 1>(j, i) l = Conv(k, l_w) t = Elu(l)",
            since(13, "o = ReduceSum(t, last_axes)", "o = ReduceSum<axes = [2, 3]>(t)"),
            since(18, "g = ReduceMean(t, last_axes)", "g = ReduceMean<axes = [2, 3]>(t)"),
            "w = GlobalAveragePool(t) z = Sum(o, g, w)",
            since(13, "ya = Squeeze(z, last_axes) yb = Unsqueeze(ya, last_axes)",
                  "ya = Squeeze<axes = [2, 3]>(z) yb = Unsqueeze<axes = [2, 3]>(ya)"),
            "yc = Flatten(yb)",
            since(12, "yd = Dropout(yc, ratio)", "yd = Dropout<ratio = 0.5>(yc)"),
            "ye = Gemm<transB = 1>(yd, g_w, g_b) yf = Tanh(ye) yg = Gemm(yf, k_w, k_b)",
            since(10, "yh, yi = TopK(yg, k3)", "yh, yi = TopK<k = 3>(yg)"),
            "y = Softmax(yh)",
        ]
    )  # fmt: skip
    constants: dict[str, Constant] = {
        "a_w": (8, 3, 3, 3), "a_b": (8,), "r_w": (8, 8, 3, 3), "l_w": (7, 6, 1, 1), "g_w": (9, 7),
        "g_b": (9,), "k_w": (9, 4), "k_b": (4,), "s": (8,), "b": (8,), "m": (8,),
        "v": np.linspace(0.5, 2, 8, dtype=np.float32), "low": np.array(0, np.float32),
        "high": np.array(6, np.float32), "space": [1, 1, 1, 1], "pads": [0, 0, 1, 1, 0, 0, 1, 1],
        "zero": np.array(0, np.float32), "last_axes": [2, 3], "none": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32), "start": [1], "end": [7], "one": [1],
        "parts": [2, 4], "ratio": np.array(0.5, np.float32), "k3": [3],
    }  # fmt: skip
    used = {name for name in constants if f" {name}," in body or f" {name})" in body}
    return graph(body, constants={name: constants[name] for name in used}, opset=opset)


@pytest.mark.parametrize("opset", range(7, 25))
def test_every_opset(opset: int) -> None:
    """Slice and Split tell channels 0 and 7, 1 and 2, and 3 to 6 of the stem apart."""
    analysis = check_cut(network(opset))
    assert sorted(open_groups(analysis).values()) == [2, 2, 4, 7, 9]
