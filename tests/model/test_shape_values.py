"""Arithmetic on sizes: constants stay constants, symbols are followed, and all else is opaque."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph

from onnxprune.model.dims import Dim
from onnxprune.model.shape_values import slice_bounds
from onnxprune.model.shapes import Shapes, concretise

INPUT = "float[N,T,12] x"


def followed(body: str, opset: int = 17, **constants: object) -> tuple[Shapes, dict[str, ir.Value]]:
    model = graph(f"{body} y = Identity(x)", inputs=INPUT, constants=constants, opset=opset)
    shapes = concretise(model)
    return shapes, {str(v.name): v for node in model.graph for v in node.outputs}


def labels(shapes: Shapes, value: ir.Value) -> list[str]:
    return [dim.label for dim in shapes.contents[value].elements()]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("z = Shape(x)", ["N", "T", "12"]),
        ("z = Shape<start = 1>(x)", ["T", "12"]),
        ("z = Shape<start = -2, end = -1>(x)", ["T"]),
        ("z = Size(x)", ["12*N*T"]),
        ("s = Shape(x) z = Gather(s, two)", ["12"]),
        ("s = Shape(x) z = Slice(s, zero, two)", ["N", "T"]),
        ("s = Shape(x) n = Gather(s, zero) t = Gather(s, one) z = Mul(n, t)", ["N*T"]),
        ("s = Shape(x) n = Gather(s, zero) z = Mul(n, four)", ["4*N"]),
        ("s = Shape(x) n, z = Split(s, split)", ["T", "12"]),
        ("s = Shape(x) z, c = Split(s, twoone)", ["N", "T"]),
        ("s = Shape(x) c = Gather(s, two) z = Div(c, four)", ["3"]),
        ("s = Shape(x) n = Gather(s, zero) m = Mul(n, four) z = Div(m, four)", ["N"]),
        ("s = Shape(x) n = Gather(s, zero) m = Mul(n, four) z = Div(m, n)", ["4"]),
        ("s = Shape(x) n = Gather(s, zero) z = Div(n, four)", ["(N/4)"]),
        ("s = Shape(x) n = Gather(s, zero) z = Add(n, one)", ["(N+1)"]),
        ("s = Shape(x) n = Gather(s, zero) z = Sub(n, one)", ["(N-1)"]),
        ("s = Shape(x) c = Gather(s, two) z = Sub(c, one)", ["11"]),
        ("s = Shape(x) n = Gather(s, zero) z = Concat<axis = 0>(n, four, minus)", ["N", "4", "-1"]),
        ("s = Shape(x) c = Cast<to = 6>(s) u = Unsqueeze(c, zero) z = Squeeze(u, zero)", ["N", "T", "12"]),
        ("s = Shape(x) e = Equal(s, minus) z = Where(e, one, s)", ["N", "T", "12"]),
        ("s = Shape(x) z = ReduceProd<keepdims = 0>(s)", ["z[]"]),
    ],
)
def test_symbols_are_followed(body: str, expected: list[str]) -> None:
    constants = {"zero": [0], "one": [1], "two": [2], "four": [4], "minus": [-1]}
    shapes, values = followed(body, **constants, split=[1, 2], twoone=[2, 1])
    if expected == ["z[]"]:
        assert not shapes.contents[values["z"]].is_constant
    else:
        assert labels(shapes, values["z"]) == expected


def test_numbers_are_those_of_the_chosen_sizes() -> None:
    shapes, values = followed("s = Shape(x) n = Gather(s, zero) z = Mul(n, four)", zero=[0], four=[4])
    n = shapes.input_shapes["x"][0]
    assert shapes.contents[values["z"]].numbers.tolist() == [4 * n]
    assert shapes.constant(values["z"]) is None


def test_integer_division_truncates_towards_zero() -> None:
    shapes, values = followed("z = Div(a, b)", a=[-7, 7, -7], b=[2, 2, -2])
    np.testing.assert_array_equal(shapes.constant(values["z"]), [-3, 3, 3])


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("z = Range(a, b, c)", [2, 5, 8]),
        ("z = ConstantOfShape(v)", [0, 0]),
        ("z = Mod(b, c)", 2),
        ("z = Max(a, b)", 11),
        ("z = Min(a, b)", 2),
        ("z = Not(f)", [True, False]),
        ("z = Neg(v)", [-2]),
    ],
)
def test_constants_are_computed(body: str, expected: object) -> None:
    shapes, values = followed(
        body, a=np.array(2), b=np.array(11), c=np.array(3), v=[2], f=np.array([False, True])
    )
    np.testing.assert_array_equal(shapes.constant(values["z"]), expected)


def test_what_would_be_huge_is_not_made() -> None:
    shapes, values = followed("z = ConstantOfShape(v) r = Range(a, b, c)", v=[1 << 20, 1 << 20],
                              a=np.array(0), b=np.array(1 << 40), c=np.array(1))  # fmt: skip
    assert values["z"] not in shapes.contents
    assert values["r"] not in shapes.contents


def test_weights_are_not_followed() -> None:
    shapes, values = followed("z = Mul(a, a)", a=(40,))
    assert values["z"] not in shapes.contents


def test_division_by_zero_is_no_crash() -> None:
    shapes, values = followed("z = Div(a, b)", a=[6], b=[0])
    assert shapes.dims[values["z"]] == (Dim(1),)


def test_labels_of_dims() -> None:
    assert Dim(4).label == "4"
    assert Dim(6, 3, ("N",)).label == "3*N"
    assert Dim(10, 1, ("N", "T")).label == "N*T"
    assert Dim(4).is_constant
    assert not Dim(4, 1, ("N",)).is_constant


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [([1], [3], [0], [1]), ([-3], [-1], [-1], [1]), ([0], [2**62], [1], [2]), ([-1], [-(2**62)], [0], [-1]),
     ([3], [0], [1], [-1]), ([5, 0], [9, 1], [1, 0], [1, 1])],
)  # fmt: skip
def test_slice_bounds_pick_what_onnx_picks(
    starts: list[int], ends: list[int], axes: list[int], steps: list[int]
) -> None:
    x = np.arange(30).reshape(5, 6)
    node = ir.node("Slice", [])
    arguments = [np.array(a, np.int64) for a in (starts, ends, axes, steps)]
    index = [slice(None)] * 2
    for axis, bounds in slice_bounds(node, 2, arguments).items():
        index[axis] = slice(*bounds)
    from onnx import helper, reference

    proto = helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["y"])
    evaluator = reference.ReferenceEvaluator(proto, opsets={"": 17})
    feeds = dict(zip("xseat", (x, *arguments), strict=True))
    np.testing.assert_array_equal(x[tuple(index)], evaluator.run(None, feeds)[0])
