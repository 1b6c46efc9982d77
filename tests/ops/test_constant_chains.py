"""Weights that are reached through other operators, as exporters leave them when they fold no constants."""

from __future__ import annotations

import numpy as np
import pytest
from cutting import Constant, check_cut, frozen_groups, graph, open_groups

from onnxprune.analyze import analyze

SEQUENCE = "float[N,5,6] x"

#: name: (lines that make w [8, 6] for a Gemm-like product, the constants that they need).
CHAINS: dict[str, tuple[str, dict[str, Constant]]] = {
    "identity": ("w = Identity(a_w)", {"a_w": (8, 6)}),
    "cast": ("v = Cast<to = 1>(a_w) w = Relu(v)", {"a_w": np.ones((8, 6), np.float16)}),
    "transpose": ("w = Transpose<perm = [1, 0]>(a_w)", {"a_w": (6, 8)}),
    "reshape": ("w = Reshape(a_w, to)", {"a_w": (2, 4, 6), "to": [8, 6]}),
    "flatten": ("w = Flatten(a_w)", {"a_w": (8, 2, 3)}),
    "unsqueeze": ("u = Unsqueeze(a_w, zero) w = Squeeze(u, zero)", {"a_w": (8, 6), "zero": [0]}),
    "slice": ("w = Slice(a_w, two, ten, zero)", {"a_w": (12, 6), "zero": [0], "two": [2], "ten": [10]}),
    "gather": ("w = Gather(a_w, order)", {"a_w": (12, 6), "order": [3, 1, 11, 4, 8, 9, 5, 2]}),
    "gather_one": ("w = Gather(a_w, one)", {"a_w": (3, 8, 6), "one": np.array(1)}),
    "split": ("w, v = Split(a_w, parts)", {"a_w": (12, 6), "parts": [8, 4]}),
    "concat": ("w = Concat<axis = 0>(a_w, d_w)", {"a_w": (3, 6), "d_w": (5, 6)}),
    "pad": ("w = Pad(a_w, pads)", {"a_w": (8, 5), "pads": [0, 0, 0, 1]}),
    "product": ("w = Mul(a_w, scale)", {"a_w": (8, 6), "scale": (8, 1)}),
    "sum": ("w = Add(a_w, d_w)", {"a_w": (8, 6), "d_w": (8, 6)}),
    "low_rank": ("d = MatMul(p_w, q_w) w = Add(a_w, d)", {"a_w": (8, 6), "p_w": (8, 3), "q_w": (3, 6)}),
    "several": (
        "c = Cast<to = 1>(a_w) s = Slice(c, two, ten, one) t = Transpose<perm = [1, 0]>(s) w = Mul(t, scale)",
        {"a_w": (6, 12), "one": [1], "two": [2], "ten": [10], "scale": (8, 1)},
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_outputs_of_a_weight_behind_a_chain(chain: str) -> None:
    lines, constants = CHAINS[chain]
    body = f"{lines} k = Transpose<perm = [1, 0]>(w) h = MatMul(x, k) r = Relu(h) y = MatMul(r, c_w)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants | {"c_w": (8, 3)}))
    expected = {"concat": [3, 5], "low_rank": [3, 8], "reshape": [4]}.get(chain, [8])
    assert sorted(open_groups(analysis).values()) == expected


@pytest.mark.parametrize("chain", [name for name in CHAINS if name != "pad"])
def test_inputs_of_a_weight_behind_a_chain(chain: str) -> None:
    lines, constants = CHAINS[chain]
    body = f"{lines} h = MatMul(x, b_w) r = Relu(h) k = Transpose<perm = [1, 0]>(w) y = MatMul(r, k)"
    analysis = check_cut(graph(body, inputs=SEQUENCE, constants=constants | {"b_w": (6, 6)}))
    assert {"flatten": 3}.get(chain, 6) in open_groups(analysis).values()


def test_a_kernel_behind_a_chain_keeps_its_taps() -> None:
    constants = {"a_w": (8, 3, 3, 3), "scale": (8, 1, 1, 1), "c_w": (4, 8, 1, 1)}
    body = "w = Mul(a_w, scale) h = Conv<kernel_shape = [3, 3]>(x, w) r = Relu(h) y = Conv(r, c_w)"
    analysis = check_cut(graph(body, constants=constants))
    assert list(open_groups(analysis).values()) == [8]
    assert sum("slides" in reason for reason in frozen_groups(analysis).values()) == 2


NORMS = {
    "ReduceL2": "n = ReduceL2<axes = [1, 2, 3]>(v)",
    "ReduceSumSquare": "q = ReduceSumSquare<axes = [1, 2, 3]>(v) n = Sqrt(q)",
    "Pow": "p = Pow(v, two) q = ReduceSum(p, axes) e = Add(q, tiny) n = Sqrt(e)",
    "Reshape": "f = Flatten(v) m = ReduceL2<axes = [1]>(f) n = Reshape(m, shape)",
}


@pytest.mark.parametrize("norm", NORMS)
def test_weight_normalisation(norm: str) -> None:
    """Input channels go without changing the norm, which is that of the whole kernel."""
    body = f"""
        h = Conv(x, b_w) r = Relu(h) {NORMS[norm]} d = Div(v, n) w = Mul(d, g)
        k = Conv<pads = [1, 1, 1, 1]>(r, w) t = Tanh(k) y = Conv(t, c_w)
    """
    constants: dict[str, Constant] = {
        "b_w": (5, 3, 1, 1), "v": (8, 5, 3, 3), "g": (8, 1, 1, 1), "c_w": (4, 8, 1, 1),
        "two": np.array(2, np.float32), "axes": [1, 2, 3], "tiny": np.array(1e-12, np.float32),
        "shape": [8, 1, 1, 1],
    }  # fmt: skip
    used = {name: constants[name] for name in constants if f" {name})" in body or f"({name}," in body}
    analysis = check_cut(graph(body, constants=used))
    assert sorted(open_groups(analysis).values()) == [5, 8]


def test_spectral_normalisation() -> None:
    """The largest singular value, from stored vectors, is a number of the whole matrix."""
    body = """
        m = MatMul(a_w, v) s = MatMul(u, m) w = Div(a_w, s) h = MatMul(x, b_w) r = Relu(h)
        k = Gemm<transB = 1>(r, w) t = Tanh(k) y = MatMul(t, c_w)
    """
    constants = {"a_w": (8, 7), "u": (8,), "v": (7,), "b_w": (6, 7), "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=constants))
    assert sorted(open_groups(analysis).values()) == [7, 8]


def test_a_constant_softmax_keeps_the_axis_that_it_normalises() -> None:
    """A learned mixture of kernels: the mixing weights are constant, and one less would change the others."""
    body = """
        p = Softmax<axis = 0>(mix) u = Einsum<equation = "k,kio->kio">(p, bank)
        f = Reshape(u, flat) h = MatMul(x, f) y = MatMul(h, c_w)
    """
    constants = {"mix": (3,), "bank": (3, 6, 8), "flat": [18, 8], "c_w": (8, 3)}
    analysis = check_cut(graph(body, inputs="float[N,18] x", constants=constants))
    assert list(open_groups(analysis).values()) == [8]


def test_an_embedding_keeps_its_rows_without_a_label() -> None:
    body = "h = Gather(a_w, x) r = Tanh(h) y = MatMul(r, c_w)"
    constants = {"a_w": (50, 8), "c_w": (8, 3)}
    analysis = analyze(graph(body, inputs="int64[N,5] x", constants=constants))
    assert {group.size for group in analysis.groups} == {8, 3}


def test_statistics_over_a_constant_keep_its_axes() -> None:
    """A constant image that is normalised over space: no place of it may go. Its channels may."""
    body = """
        n = InstanceNormalization(p_w, s, b) k = Reshape(n, to) t = Transpose<perm = [1, 0]>(k)
        g = MatMul(x, g_w) h = MatMul(g, t) y = MatMul(h, c_w)
    """
    constants = {
        "p_w": (1, 8, 4, 4), "s": (8,), "b": (8,), "to": [8, 16], "g_w": (6, 16), "c_w": (8, 3),
    }  # fmt: skip
    analysis = check_cut(graph(body, inputs="float[N,6] x", constants=constants))
    assert list(open_groups(analysis).values()) == [8]


def test_weight_standardisation() -> None:
    """A batch normalisation over each filter, as some exporters spell it: the weight it makes is cut."""
    body = """
        f = Reshape(a_w, rows) n, rm, rv = BatchNormalization<training_mode = 1>(f, s, b, m, v)
        w = Reshape(n, back)
        h = Conv(x, w) y = Conv(h, c_w)
    """
    random = np.random.default_rng(0)
    constants = {
        "a_w": (8, 3, 2, 2), "rows": [1, 8, 12], "s": (8,), "b": (8,), "m": (8,),
        "v": random.uniform(0.5, 2, 8).astype(np.float32), "back": [8, 3, 2, 2], "c_w": (4, 8, 1, 1),
    }  # fmt: skip
    assert list(open_groups(check_cut(graph(body, constants=constants))).values()) == [8]
