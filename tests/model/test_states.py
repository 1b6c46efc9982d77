"""Initial states of recurrent layers: zeros are left out, others stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import Constant, graph

from onnxprune.model.prepare import prepare
from onnxprune.prove import prove

SIZES = ({"x": (4, 2, 3)}, {"x": (2, 3, 3)})
WEIGHTS: dict[str, Constant] = {
    "w": (1, 16, 3), "r": (1, 16, 4), "zero": [0], "one": [1], "two": [2], "h": [4],
}  # fmt: skip
TARGET = "i = Shape(x) n = Gather(i, one) t = Concat<axis = 0>(one, n, h) "


def prepared(body: str, constants: dict[str, Constant]) -> ir.Model:
    """Return the working copy, which computes the same bits."""
    model = graph(body, inputs="float[T,B,3] x", constants=WEIGHTS | constants)
    work, _ = prepare(model)
    check = prove(model, work, SIZES, tolerance=0)
    assert check.passed, check.detail
    assert f"over {len(SIZES)} random" in check.detail
    return work


def states_of(model: ir.Model) -> list[ir.Value | None]:
    return [
        value for node in model.graph if node.op_type == "LSTM" for value in [*node.inputs, *4 * [None]][5:7]
    ]


LAYER = 'y = LSTM<hidden_size = 4>(x, w, r, "", "", z, z)'


@pytest.mark.parametrize(
    "made",
    ["z = ConstantOfShape(t)", "z = ConstantOfShape<value = float[1] {0.0}>(t)", "z = Expand(nothing, t)",
     "a = ConstantOfShape(t) b = Concat<axis = 0>(a, a) z = Slice(b, one, two, zero)",
     "a = ConstantOfShape(t) b = Squeeze(a, zero) z = Unsqueeze(b, zero)"],
)  # fmt: skip
def test_zeros_are_left_out(made: str) -> None:
    work = prepared(TARGET + made + LAYER, {"nothing": np.zeros(1, np.float32)})
    assert states_of(work) == [None, None]
    assert [node.op_type for node in work.graph] == ["LSTM"]


@pytest.mark.parametrize(
    "made", ["z = ConstantOfShape<value = float[1] {0.5}>(t)", "z = Expand(half, t)", "z = Expand(table, t)"]
)
def test_other_states_stay(made: str) -> None:
    """A stored table too, though it is zero now: another training may leave other numbers in it."""
    constants: dict[str, Constant] = {
        "half": np.full(1, 0.5, np.float32), "table": np.zeros((1, 1, 4), np.float32)
    }  # fmt: skip
    assert None not in states_of(prepared(TARGET + made + LAYER, constants))


def test_a_computed_state_stays() -> None:
    body = "m = ReduceMean<axes = [0], keepdims = 1>(x) z = MatMul(m, s_w)" + LAYER
    h, c = states_of(prepared(body, {"s_w": (3, 4)}))
    assert h is c
