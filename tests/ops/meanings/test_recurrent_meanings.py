"""LSTM, GRU and RNN in their forms, and control flow, against ONNX Runtime and finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from cutting import graph
from executing import check_forward, check_gradient, in_torch, one_node

RANDOM = np.random.default_rng(5)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, INPUTS, UNITS = 3, 2, 3, 2


def f(*shape: int) -> np.ndarray:
    return RANDOM.uniform(-1, 1, shape).astype(np.float32)


def layer(op: str, directions: int, *more: str, batch_first: bool = False) -> dict[str, np.ndarray]:
    """Inputs of a layer in the order of its node; those of ``more`` besides x, w and r."""
    gates = GATES[op]
    state = (BATCH, directions, UNITS) if batch_first else (directions, BATCH, UNITS)
    all_of_them = {
        "x": f(*((BATCH, STEPS, INPUTS) if batch_first else (STEPS, BATCH, INPUTS))),
        "w": f(directions, gates * UNITS, INPUTS), "r": f(directions, gates * UNITS, UNITS),
        "b": f(directions, 2 * gates * UNITS), "lengths": np.array([3, 2], np.int32), "h": f(*state),
        "c": f(*state), "p": f(directions, 3 * UNITS),
    }  # fmt: skip
    return {name: array for name, array in all_of_them.items() if name in ("x", "w", "r", *more)}


def check(op: str, inputs: dict[str, np.ndarray], *, smooth: bool = True, **attributes: Any) -> None:
    order = ["x", "w", "r", *(name if name in inputs else "" for name in ("b", "lengths", "h", "c", "p"))]
    while not order[-1]:
        order.pop()
    outputs = 3 if op == "LSTM" else 2
    model = one_node(op, inputs, opset=14, order=order, outputs=outputs, hidden_size=UNITS, **attributes)
    check_forward(model, inputs)
    if smooth:
        check_gradient(model, inputs)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("more", [(), ("b", "h", "c"), ("b", "lengths", "h", "c")])
def test_directions_and_states(op, direction, more):
    directions = 2 if direction == "bidirectional" else 1
    more = tuple(name for name in more if name != "c" or op == "LSTM")
    check(op, layer(op, directions, *more), direction=direction)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("linear", [0, 1])
@pytest.mark.parametrize("more", [("b",), ("b", "lengths", "h")])
def test_reset_of_a_gru(direction, linear, more):
    inputs = layer("GRU", 2 if direction == "bidirectional" else 1, *more)
    check("GRU", inputs, direction=direction, linear_before_reset=linear)


@pytest.mark.parametrize("more", [("p",), ("b", "h", "c", "p")])
def test_peepholes(more):
    check("LSTM", layer("LSTM", 1, *more))


def test_coupled_gates():
    check("LSTM", layer("LSTM", 1, "b", "h", "c"), input_forget=1)


@pytest.mark.parametrize("op", GATES)
def test_limits(op):
    check(op, layer(op, 1, "b"), clip=0.3, smooth=False)


def test_functions_of_gates():
    names = ["HardSigmoid", "ScaledTanh", "Elu"]
    check(
        "LSTM", layer("LSTM", 1, "b"), activations=names, activation_alpha=[0.3, 1.2, 0.9],
        activation_beta=[0.4, 0.8],
    )  # fmt: skip
    check("GRU", layer("GRU", 1, "b"), activations=["Sigmoid", "Softsign"])
    check("RNN", layer("RNN", 2, "b"), direction="bidirectional", activations=["Relu", "LeakyRelu"],
          activation_alpha=[0.2])  # fmt: skip
    check("RNN", layer("RNN", 1, "b"), activations=["Affine"], activation_alpha=[0.7], activation_beta=[0.1])


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op):
    # ONNX Runtime has no kernel for this layout: compare with the other one
    for direction in ("forward", "bidirectional"):
        count = 2 if direction == "bidirectional" else 1
        inputs = layer(op, count, "b", "h", *(["c"] if op == "LSTM" else []), batch_first=True)
        order = ["x", "w", "r", "b", "", "h", *(["c"] if op == "LSTM" else [])]
        options: dict[str, Any] = {
            "opset": 14, "order": order, "outputs": 3 if op == "LSTM" else 2, "hidden_size": UNITS,
            "direction": direction,
        }  # fmt: skip
        first = in_torch(one_node(op, inputs, layout=1, **options), inputs)
        turned = {name: array.swapaxes(0, 1) if name in "xhc" else array for name, array in inputs.items()}
        later = in_torch(one_node(op, turned, **options), turned)
        np.testing.assert_allclose(first[0], later[0].transpose(2, 0, 1, 3), rtol=1e-6)
        for one, other in zip(first[1:], later[1:], strict=True):
            np.testing.assert_allclose(one, other.swapaxes(0, 1), rtol=1e-6)


# --- control flow -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", [True, False])
def test_if_reads_values_of_the_outer_graph(chosen):
    model = graph(
        """h = MatMul(x, w)
        y = If(c) <then_branch = a () => (float[2,3] p) { p = Mul(h, h) },
                   else_branch = b () => (float[2,3] q) { q = Add(h, x0) }>""",
        inputs="float[2,3] x, bool c",
        constants={"w": f(3, 3), "x0": f(3)},
    )
    inputs = {"x": f(2, 3), "c": np.array(chosen)}
    check_forward(model, inputs)
    check_gradient(model, inputs)


@pytest.mark.parametrize("trips", [3, 1])
def test_loop_carries_and_collects(trips):
    model = graph(
        """last, all = Loop(n, , x) <
            body = b (int64 i, bool on, float[2,3] s) => (bool go, float[2,3] t, float[2,3] part)
        { m = MatMul(s, w) t = Tanh(m) part = Mul(t, k) go = Identity(on) }>""",
        inputs="float[2,3] x, int64 n",
        outputs="last; all",
        constants={"w": f(3, 3), "k": f(3)},
    )
    inputs = {"x": f(2, 3), "n": np.array(trips)}
    check_forward(model, inputs)
    check_gradient(model, inputs)


def test_loop_ends_by_its_condition():
    model = graph(
        """last = Loop(n, c, x) <body = b (int64 i, bool on, float[2] s) => (bool go, float[2] t)
        { t = Add(s, s) m = ReduceMax<keepdims=0>(t) go = Less(m, limit) }>""",
        inputs="float[2] x, int64 n, bool c",
        outputs="last",
        constants={"limit": np.float32(20)},
    )
    for x, start in ((1.0, True), (30.0, True), (1.0, False)):
        inputs = {"x": np.array([x, -1], np.float32), "n": np.array(50), "c": np.array(start)}
        check_forward(model, inputs)


def test_scan_backwards_along_another_axis():
    model = graph(
        """last, all = Scan(s0, x) <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1],
            scan_output_axes=[-1], scan_output_directions=[1],
            body = b (float[2] s, float[2] v) => (float[2] t, float[2] part)
            { m = Mul(s, k) t = Add(m, v) part = Tanh(t) }>""",
        inputs="float[2] s0, float[2,4] x",
        outputs="last; all",
        constants={"k": f(2)},
    )
    inputs = {"s0": f(2), "x": f(2, 4)}
    check_forward(model, inputs)
    check_gradient(model, inputs)


def test_sequences():
    model = graph(
        """parts = SplitToSequence<axis=1>(x, two) at = SequenceAt(parts, minus)
        without = SequenceErase(parts, zero) doubled = Mul(at, at)
        longer = SequenceInsert(without, doubled, zero)
        y = ConcatFromSequence<axis=1>(longer) n = SequenceLength(longer)
        pair = SequenceConstruct(x, x) z = ConcatFromSequence<axis=0, new_axis=1>(pair)""",
        inputs="float[2,5] x",
        outputs="y; int64 n; z",
        constants={"two": np.array(2), "minus": np.array(-2), "zero": np.array(0)},
    )
    inputs = {"x": f(2, 5)}
    check_forward(model, inputs)
    check_gradient(model, inputs)
