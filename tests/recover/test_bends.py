"""Nonlinearities behind layers: where they end, and that what they cut off is not repaired."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph, graph_proto
from repairing import Pair, masked_pair, outputs

from onnxprune.data import Dataset
from onnxprune.model.prepare import prepare
from onnxprune.recover import Repaired, repair, walk
from onnxprune.recover.bends import find_bends
from onnxprune.types import Mask

TOKENS = "float[N,6] x"
THREE, SIX = np.float32(3), np.float32(6)


def bend(
    body: str, constants: dict[str, Any], missing: tuple[str, ...] = (), outputs: str = "y"
) -> str | None:
    """Return behind which value ``a`` is bent."""
    given = graph(body, inputs=TOKENS, constants={"w": (6, 8), "v": (8, 6), **constants}, outputs=outputs)
    model, _ = prepare(given)
    names = {str(o.name) for node in model.graph for o in node.outputs}
    (found,) = find_bends(model.graph, ["a"], names - set(missing))
    return found


#: Nodes from ``a`` to ``r``, and their constants.
NONLINEARITIES: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("r = Relu(a)", {}),
    "scaled": ("b = Mul(a, three) c = Relu(b) r = Mul(c, three)", {"three": THREE}),
    "sigmoid": ("r = Sigmoid(a)", {}),
    "silu": ("s = Sigmoid(a) r = Mul(a, s)", {}),
    "hardswish": (
        "b = Add(a, three) c = Clip(b, zero, six) m = Mul(a, c) r = Div(m, six)",
        {"three": THREE, "zero": np.float32(0), "six": SIX},
    ),
    "gelu": (
        "d = Div(a, root) e = Erf(d) f = Add(e, one) g = Mul(a, f) r = Mul(g, half)",
        {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)},
    ),
}


@pytest.mark.parametrize("name", list(NONLINEARITIES))
def test_a_nonlinearity_ends_where_the_next_layer_reads(name: str) -> None:
    nodes, constants = NONLINEARITIES[name]
    assert bend(f"a = MatMul(x, w) {nodes} y = MatMul(r, v)", constants) == "r"


def test_a_gate_ends_before_what_it_multiplies() -> None:
    body = "a = MatMul(x, w) r = HardSigmoid(a) g = MatMul(x, u) h = Mul(r, g) y = MatMul(h, v)"
    assert bend(body, {"u": (6, 8)}) == "r"


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = MatMul(x, w) b = Mul(a, three) y = MatMul(b, v)", "scaling bends nothing"),
        (
            "a = MatMul(x, w) r = Relu(a) b = MatMul(r, v) c = MatMul(a, v) y = Add(b, c)",
            "read before it, too",
        ),
        ("a = MatMul(x, w) r = Softmax(a) y = MatMul(r, v)", "not number by number"),
        ("a = MatMul(x, w) s = Sigmoid(a) n = Neg(a) m = Mul(s, n) y = MatMul(m, v)", "Neg is no part of it"),
    ],
)
def test_what_is_no_nonlinearity(body: str, why: str) -> None:
    assert bend(body, {"three": THREE}) is None, why


def test_a_result_that_is_given_away_is_compared_itself() -> None:
    assert bend("a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)", {}, outputs="y; a") is None


def test_a_value_that_only_the_pruned_model_has_is_passed() -> None:
    nodes, constants = NONLINEARITIES["scaled"]
    body = f"a = MatMul(x, w) {nodes} y = MatMul(r, v)"
    assert bend(body, constants, missing=("r",)) == "c"
    assert bend(body, constants, missing=("r", "c")) is None


# --- repair -------------------------------------------------------------------------------------------------


def masked(nodes: str, constants: dict[str, Any]) -> tuple[Pair, Dataset, dict[str, Any]]:
    """Return a model of one masked layer and a nonlinearity, and data on which masked inputs are not linear
    in the others: what stands in for them where the nonlinearity lets it pass is not what does everywhere.
    """
    proto = graph_proto(
        f"p = MatMul(x, w) a = Add(p, bias) {nodes} y = Identity(r)",
        inputs=TOKENS,
        constants={"w": (6, 8), "bias": np.full(8, -1, np.float32), **constants},
    )
    masks = {"w": Mask.pack(np.repeat([True, False], 3)[:, None] & np.ones((6, 8), np.bool_))}
    x = np.random.default_rng(0).standard_normal((2400, 6)).astype(np.float32)
    x[:, 3:] = x[:, :3] ** 2
    return masked_pair(proto, masks), Dataset.from_arrays({"x": x}), masks


def first(data: Dataset, count: int = 400) -> Dataset:
    return Dataset.from_arrays({name: array[:count] for name, array in data.arrays.items()})


def error(model: ir.Model, pair: Pair, data: Dataset) -> float:
    ours, theirs = outputs(pair.original, data)[0], outputs(model, data)[0]
    return float(np.square(theirs - ours).sum() / np.square(ours - ours.mean(axis=0)).sum())


def repaired(pair: Pair, data: Dataset, masks: dict[str, Any]) -> Repaired:
    return repair(pair.original, pair.pruned, pair.kept, data, masks=masks)


# a sigmoid cuts off too little of these values
@pytest.mark.parametrize("name", [name for name in NONLINEARITIES if name != "sigmoid"])
def test_what_is_behind_a_nonlinearity_comes_closer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, data, masks = masked(*NONLINEARITIES[name])
    other = Dataset.from_arrays({"x": data.arrays["x"][400:]})
    data = first(data)
    result = repaired(pair, data, masks)
    assert [layer.outcome for layer in result.layers] == [
        "repaired",
        "repaired again, behind its nonlinearity",
    ]
    monkeypatch.setattr(walk._Walk, "_repair_bent", lambda *_: None)
    once = repaired(pair, data, masks)
    assert [layer.outcome for layer in once.layers] == ["repaired"]
    assert error(result.model, pair, other) < 0.97 * error(once.model, pair, other)


def test_one_that_falls_is_left_to_the_first_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing behind it would push the wrong way."""
    pair, data, masks = masked("c = LeakyRelu(a) r = Mul(c, minus)", {"minus": np.float32(-1)})
    result = repaired(pair, data, masks)
    assert [layer.outcome for layer in result.layers] == ["repaired"]
    monkeypatch.setattr(walk._Walk, "_repair_bent", lambda *_: None)
    assert error(result.model, pair, data) == error(repaired(pair, data, masks).model, pair, data)


def test_a_layer_that_lacks_nothing_is_not_touched() -> None:
    pair, data, _ = masked(*NONLINEARITIES["relu"])
    same = Pair(pair.original, pair.original, pair.kept)
    assert [layer.outcome for layer in repaired(same, data, {}).layers] == ["nothing is missing"]


@pytest.mark.parametrize("method", ["bias", "statistics"])
def test_means_and_deviations_are_matched_before_it(method: str) -> None:
    pair, data, masks = masked(*NONLINEARITIES["relu"])
    result = repair(pair.original, pair.pruned, pair.kept, data, method=method, masks=masks)
    assert len(result.layers) == 1
