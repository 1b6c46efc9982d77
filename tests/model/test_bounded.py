"""A few numbers that ask for far too much: what would come out is known before it is computed."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import filled

from onnxprune.errors import ModelError
from onnxprune.model import constant_statistics, shape_values
from onnxprune.model.bounded import result_elements
from onnxprune.model.constant_statistics import fold_statistics
from onnxprune.model.shapes import MOST_POSITIONS, concretise, input_shapes
from onnxprune.ops import evaluate as evaluation

SIZE = np.array([1 << 20, 1 << 20], np.int64)
ROW = np.ones((1, 1 << 12), np.float32)


def graph(body: str, *, inputs: str, constants: dict[str, object]) -> ir.Model:
    """A model from ONNX text, without the shape inference of onnx, which runs into these traps itself."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> small ({inputs}) => (float y) {{{body}}}'
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, constant in constants.items():
        tensor = onnx.numpy_helper.from_array(filled(constant, random), name)  # type: ignore[arg-type]
        proto.graph.initializer.append(tensor)
    return ir.from_proto(proto)


def node(operator: str, count: int, **attributes: int) -> ir.Node:
    inputs = [ir.Value(name=f"x{number}") for number in range(count)]
    return ir.node(operator, inputs, attributes)


@pytest.mark.parametrize(
    ("operator", "inputs", "elements"),
    [
        ("Expand", [np.float32([[1]]), SIZE], 1 << 40),
        ("ConstantOfShape", [SIZE], 1 << 40),
        ("Tile", [np.float32([[1, 2]]), SIZE], 1 << 41),
        ("Add", [ROW, ROW.T], 1 << 24),
        ("MatMul", [ROW.T, ROW], 1 << 24),
        ("Concat", [ROW, ROW], 1 << 13),
        ("Relu", [ROW], 1 << 12),
        ("ReduceSum", [ROW, None], 1 << 12),
        ("NonZero", [ROW], None),
        ("Nothing", [ROW], None),
        ("MatMul", [ROW, ROW], None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_how_large_a_result_would_be(
    operator: str, inputs: list[np.ndarray | None], elements: int | None
) -> None:
    attributes = {"axis": 0} if operator == "Concat" else {}
    assert result_elements(node(operator, len(inputs), **attributes), inputs, 17) == elements


def test_a_large_result_is_not_evaluated(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = node("Expand", 2)
    assert evaluation.evaluate(wide, [np.float32([[1]]), SIZE], 17) is None
    small = np.array([3, 4], np.int64)
    (result,) = evaluation.evaluate(wide, [np.float32([[1]]), small], 17) or ()
    assert result.shape == (3, 4)
    monkeypatch.setattr(evaluation, "_ROOM", 0)
    monkeypatch.setattr(evaluation, "_TIMES_GIVEN", 4)
    assert evaluation.evaluate(wide, [np.float32([[1]]), small], 17) is not None
    monkeypatch.setattr(evaluation, "_TIMES_GIVEN", 3)
    assert evaluation.evaluate(wide, [np.float32([[1]]), small], 17) is None


# ---- statistics of constants


def folds(body: str, **constants: object) -> list[str]:
    model = graph(f"{body} y = Mul(x, n)", inputs="float[N,6] x", constants=constants)
    fold_statistics(model.graph, 17)
    return [str(name) for name in model.graph.initializers if "folded" in str(name)]


DOUBLING = " ".join(f"v{n + 1} = Concat<axis = 0>(v{n}, v{n})" for n in range(40))


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (f"{DOUBLING} n = ReduceSum<keepdims = 0>(v40)", {"v0": np.ones(1, np.float32)}),
        ("b = ConstantOfShape(s) n = ReduceSum<keepdims = 0>(b)", {"s": SIZE}),
        ("b = Expand(one, s) n = ReduceMax<keepdims = 0>(b)", {"s": SIZE, "one": np.ones(1, np.float32)}),
        ("g = Gather(v, far) n = ReduceSum<keepdims = 0>(g)", {"v": np.ones(4, np.float32), "far": [9, 10]}),
        ("g = NonZero(v) c = Cast<to = 1>(g) n = ReduceSum<keepdims = 0>(c)", {"v": np.ones(4, np.float32)}),
    ],
    ids=["doubling", "filled", "expanded", "outside", "unknown"],
)
def test_statistics_that_cannot_be_had_cheaply_stay(body: str, constants: dict[str, object]) -> None:
    assert folds(body, **constants) == []


def test_a_statistic_may_compute_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    body, weight = "p = Mul(v, v) q = Mul(p, p) n = ReduceSum<keepdims = 0>(q)", np.ones((4, 6), np.float32)
    monkeypatch.setattr(constant_statistics, "_ROOM", 0)
    monkeypatch.setattr(constant_statistics, "_TIMES_STORED", 3)
    assert folds(body, v=weight) == ["n_folded"]
    monkeypatch.setattr(constant_statistics, "_TIMES_STORED", 2)
    assert folds(body, v=weight) == []


def test_a_long_chain_of_constants_is_no_recursion() -> None:
    chain = " ".join(f"v{n + 1} = Abs(v{n})" for n in range(3000))
    assert folds(f"{chain} n = ReduceSum<keepdims = 0>(v3000)", v0=np.ones(8, np.float32)) == ["n_folded"]


def test_operators_that_numpy_would_take_ages_for_are_left_alone() -> None:
    body = "r, i = TopK(v, k) n = ReduceSum<keepdims = 0>(r)"
    assert folds(body, v=np.ones(8, np.float32), k=[4]) == []


# ---- sizes


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("z = Expand(one, s)", {"one": [1], "s": SIZE}),
        ("z = ConstantOfShape(s)", {"s": SIZE}),
        ("z = OneHot(one, d, p)", {"one": [1], "d": np.array(1 << 40), "p": [0, 1]}),
        ("z = Range(a, b, c)", {"a": np.array(0), "b": np.array(1 << 40), "c": np.array(1)}),
        ("z = Range(a, b, c)", {"a": np.array(0), "b": np.array(5), "c": np.array(0)}),
        ("z = Add(p, q)", {"p": np.ones((4000, 1), np.int64), "q": np.ones((1, 4000), np.int64)}),
        ("z = Max(p, q)", {"p": np.ones((4000, 1), np.int64), "q": np.ones((1, 4000), np.int64)}),
        ("z = Add(p, q)", {"p": np.ones(3, np.int64), "q": np.ones(4, np.int64)}),
        ("z = Slice(p, q, q, q, q)", {"p": np.ones(3, np.int64), "q": [0]}),
        ("z = Concat<axis = 7>(p, p)", {"p": np.ones(3, np.int64)}),
        ("z = Squeeze(p, q)", {"p": np.ones(3, np.int64), "q": [5]}),
    ],
    ids=lambda value: value.split("(")[0][4:] if isinstance(value, str) else "",
)
def test_contents_that_cannot_be_followed_are_unknown(
    body: str, constants: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    real: Callable[..., np.ndarray] = np.ascontiguousarray
    monkeypatch.setattr(shape_values.np, "ascontiguousarray", lambda x: made.append(x.size) or real(x))
    model = graph(f"{body} y = Identity(x)", inputs="float[N,6] x", constants=constants)
    shapes = concretise(model)
    value = next(v for node in model.graph for v in node.outputs if v.name == "z")
    assert value not in shapes.contents
    assert max(made, default=0) <= 1 << 20


def test_an_axis_that_is_too_long_to_follow_is_unknown() -> None:
    sizes = np.array([MOST_POSITIONS + 1], np.int64)
    for size, known in ((sizes, False), (sizes - 1, True)):
        model = graph("z = Expand(x, s) y = Identity(z)", inputs="float[1] x", constants={"s": size})
        shapes = concretise(model)
        value = next(v for node in model.graph for v in node.outputs if v.name == "z")
        assert (value in shapes.dims) == known
        assert known or f"longer than {MOST_POSITIONS}" in shapes.unknown[value]


@pytest.mark.parametrize(
    ("body", "index", "inside"),
    [
        ("z = Gather(x, i)", [3], [2]),
        ("z = Gather(x, i)", [-4], [-3]),
        ("z = Gather<axis = -1>(x, i)", [4], [3]),
        ("z = GatherElements<axis = 1>(x, i)", [[4], [0], [0]], [[3], [0], [0]]),
        ("z = GatherND(x, i)", [[2, 4]], [[2, 3]]),
        ("z = ScatterND(x, i, u)", [[3]], [[-3]]),
    ],
)
def test_constant_indices_must_point_inside(body: str, index: object, inside: object) -> None:
    for numbers, fits in ((index, False), (inside, True)):
        constants: dict[str, object] = {"i": np.array(numbers, np.int64), "u": np.ones((1, 4), np.float32)}
        used = {name: value for name, value in constants.items() if f" {name}" in body}
        model = graph(f"{body} y = Identity(x)", inputs="float[3,4] x", constants=used)
        for look in (concretise, input_shapes):  # the latter though there is no choice of sizes
            if fits:
                look(model)
                continue
            with pytest.raises(ModelError, match=r"has the index -?[34] of an axis of [34] positions"):
                look(model)


def test_sizes_without_a_choice_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.model.shapes.concretise", None)
    assert input_shapes(graph("y = Relu(x)", inputs="float[3,4] x", constants={})) == {"x": (3, 4)}
    assert input_shapes(graph("y = Relu(x)", inputs="float[N,4] x", constants={}), {"x": (3, 4)}) == {
        "x": (3, 4)
    }


def test_indices_of_what_may_have_any_size_are_not_judged() -> None:
    model = graph("z = Gather(x, i) y = Identity(x)", inputs="float[N,4] x", constants={"i": [999]})
    concretise(model)


def test_the_time_of_a_hundred_thousand_nodes_is_bounded() -> None:
    """Not a benchmark: a quadratic pass would take minutes."""
    chain = [onnx.helper.make_node("Relu", [f"v{n}"], [f"v{n + 1}"]) for n in range(20_000)]
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("v0", "v20000")
    ]
    proto = onnx.helper.make_model(onnx.helper.make_graph(chain, "g", ends[:1], ends[1:]))
    started = time.process_time()
    concretise(ir.from_proto(proto))
    assert time.process_time() - started < 60
