"""Weights in pieces are put together, and picked parts of joined values are read where they come from."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import Constant, graph

from onnxprune.model.prepare import prepare
from onnxprune.prove import prove

SIZES = ({"x": (2, 6)}, {"x": (3, 6)})
BOUNDS: dict[str, Constant] = {"i0": [0], "i1": [1], "i4": [4], "i8": [8], "i9": [9], "halves": [4, 4]}


def prepared(body: str, constants: dict[str, Constant], outputs: str = "y", opset: int = 17) -> ir.Model:
    """Return the working copy, which computes the same bits."""
    model = graph(body, inputs="float[N,6] x", outputs=outputs, constants=BOUNDS | constants, opset=opset)
    work, shapes = prepare(model)
    check = prove(model, work, SIZES, tolerance=0)
    assert check.passed, check.detail
    assert f"over {len(SIZES)} random" in check.detail
    assert all(
        value in shapes.dims for node in work.graph for value in (*node.inputs, *node.outputs) if value
    )
    return work


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def floats(model: ir.Model) -> dict[str, tuple[int, ...]]:
    tensors = {name: value.const_value for name, value in model.graph.initializers.items()}
    return {
        name: tuple(t.shape.numpy())
        for name, t in tensors.items()
        if t is not None and t.dtype == ir.DataType.FLOAT
    }


@pytest.mark.parametrize(
    "parts",
    ["a = Slice(w, i0, i4, i0) b = Slice(w, i4, i8, i0)", "a, b = Split(w, halves)", "a, b = Split(w)"],
)
def test_pieces_in_another_order_become_one_weight(parts: str) -> None:
    body = f"{parts} j = Concat<axis = 0>(b, a) t = Transpose(j) y = MatMul(x, t)"
    work = prepared(body, {"w": (8, 6)})
    assert op_types(work) == ["MatMul"]
    assert floats(work) == {"w_joined": (6, 8)}


def test_pieces_of_old_operator_versions() -> None:
    body = """
        a = Slice<starts = [0], ends = [4], axes = [0]>(w) b, c = Split<axis = 0, split = [1, 3]>(v)
        j = Concat<axis = 0>(a, b, c) u = Unsqueeze<axes = [0]>(j) s = Squeeze<axes = [0]>(u)
        t = Transpose<perm = [1, 0]>(s) y = MatMul(x, t)
    """
    work = prepared(body, {"w": (8, 6), "v": (4, 6)}, opset=9)
    assert op_types(work) == ["MatMul"]
    assert floats(work) == {"w_joined": (6, 8)}


def test_a_weight_joined_to_pieces() -> None:
    body = "a = Slice(w, i0, i4, i1) b = Slice(w, i4, i8, i1) j = Concat<axis = 1>(b, v, a) y = MatMul(x, j)"
    assert floats(prepared(body, {"w": (6, 8), "v": (6, 2)})) == {"w_joined": (6, 10)}


def test_pieces_that_are_used_apart_are_weights_of_their_own() -> None:
    body = "a, b = Split<axis = 1>(w, halves) p = MatMul(x, a) q = MatMul(x, b) y = Mul(p, q)"
    assert floats(prepared(body, {"w": (6, 8)})) == {"w_piece": (6, 4), "w_piece_2": (6, 4)}


@pytest.mark.parametrize(
    ("body", "why"),
    [("a = Slice(w, i0, i8, i1) b = Slice(w, i1, i9, i1) p = MatMul(x, a) q = MatMul(x, b) y = Add(p, q)",
      "the pieces overlap"),
     ("a = Slice(w, i0, i4, i1) p = MatMul(x, a) q = MatMul(x, w) r = ReduceSum<keepdims = 1>(q, i1) "
      "y = Add(p, r)", "something else reads the whole")],
)  # fmt: skip
def test_weights_are_not_taken_apart(body: str, why: str) -> None:
    work = prepared(body, {"w": (6, 9)})
    assert floats(work) == {"w": (6, 9)}, why
    assert "Slice" in op_types(work)


def test_computed_bounds_stay() -> None:
    body = """
        s = Shape(x) n = Gather(s, i0) a = Slice(w, i0, n, i0) j = Concat<axis = 0>(x, a) y = Relu(j)
    """
    work = prepared(body, {"w": (8, 6)})
    assert "Slice" in op_types(work)
    assert floats(work) == {"w": (8, 6)}


def test_a_piece_that_is_an_output_stays() -> None:
    body = "a = Slice(w, i0, i4, i1) y = MatMul(x, a)"
    work = prepared(body, {"w": (6, 8)}, outputs="y; float[6,4] a")
    assert op_types(work) == ["Slice", "MatMul"]


def test_weights_that_are_only_joined_stay_apart() -> None:
    """Their names say more than that of a joined one would."""
    body = "j = Concat<axis = 1>(v, w) y = MatMul(x, j)"
    assert floats(prepared(body, {"v": (6, 3), "w": (6, 5)})) == {"v": (6, 3), "w": (6, 5)}


def test_a_joined_piece_with_other_readers_stays() -> None:
    body = """
        a, b = Split<axis = 1>(w, halves) j = Concat<axis = 1>(b, a) p = MatMul(x, j) q = MatMul(x, a)
        r = ReduceSum<keepdims = 1>(q, i1) y = Add(p, r)
    """
    work = prepared(body, {"w": (6, 8)})
    assert "Concat" in op_types(work)
    assert sum(np.prod(shape) for shape in floats(work).values()) == 48


JOINED = "p = Relu(x) q = Neg(x) s = Exp(x) j = Concat<axis = 1>(p, q, s) "


@pytest.mark.parametrize(
    ("positions", "left"),
    [
        (np.array(7), "Neg"),
        (np.array(-1), "Exp"),
        ([0, 5, 2], "Relu"),
        ([-18, 3], "Relu"),
        ([[12], [17]], "Exp"),
    ],
)
def test_a_pick_from_one_part_reads_that_part(positions: Constant, left: str) -> None:
    """Numbers count from the part's own beginning then, scalars, lists and tables alike."""
    work = prepared(JOINED + "y = Gather<axis = 1>(j, at)", {"at": np.array(positions)})
    assert op_types(work) == [left, "Gather"]


@pytest.mark.parametrize("pick", ["y = Gather<axis = 1>(j, at)", "y = Gather<axis = 0>(j, i0)"])
def test_a_pick_from_several_parts_stays(pick: str) -> None:
    assert "Concat" in op_types(prepared(JOINED + pick, {"at": [5, 6]}))


def test_a_pick_along_an_axis_of_unknown_sizes_stays() -> None:
    body = "p = Relu(x) q = Neg(x) j = Concat<axis = 0>(p, q) y = Gather<axis = 0>(j, i1)"
    assert "Concat" in op_types(prepared(body, {}))


def test_a_pick_across_the_joined_axis_stays() -> None:
    body = """
        t = Transpose(x) p = Relu(t) q = Neg(t) j = Concat<axis = 1>(p, q) y = Gather<axis = 0>(j, i1)
    """
    assert "Concat" in op_types(prepared(body, {}))
