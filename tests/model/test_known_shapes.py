"""Shapes that ONNX is not asked for, or not asked for again, are those that it would tell."""

from __future__ import annotations

from itertools import product

import onnx_ir as ir
import pytest
from cutting import graph
from generated import generated_model

from onnxprune.model import output_sizes
from onnxprune.model.shapes import _Walk, concretise


def all_sizes(
    model: ir.Model, inputs: dict[str, list[int]] | None = None
) -> tuple[dict[str, object], dict[str, str]]:
    shapes = concretise(model, inputs)
    dims = {str(v.name): [dim.label for dim in d] for v, d in shapes.dims.items()}
    sizes = {str(v.name): [dim.size for dim in d] for v, d in shapes.dims.items()}
    return {"dims": dims, "sizes": sizes}, {str(v.name): why for v, why in shapes.unknown.items()}


def asked_each_time(
    model: ir.Model, patch: pytest.MonkeyPatch, inputs: dict[str, list[int]] | None = None
) -> tuple[dict[str, object], dict[str, str]]:
    with patch.context() as here:
        here.setattr(_Walk, "_repeats", lambda *_: False)
        here.setattr(_Walk, "_question", lambda *_: None)
        return all_sizes(model, inputs)


SIZES = ("N", "M", "1", "3")


@pytest.mark.parametrize(("a", "b"), list(product(SIZES, SIZES)))
@pytest.mark.parametrize(
    "shapes", ["{a},4|{b},4", "{a},{b}|{b},{a}", "{a}|2,{b}", "2,{a},1|{b},5", "{a}|{b}"]
)
@pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (3, 1)])
def test_broadcasting(
    a: str, b: str, shapes: str, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, z = shapes.format(a=a, b=b).split("|")
    model = graph("s = Add(x, z) y = Relu(s)", inputs=f"float[{x}] x, float[{z}] z", outputs="y")
    number = dict(zip("NM", sizes, strict=True))
    given = {
        name: [number[size] if size in number else int(size) for size in shape.split(",")]
        for name, shape in (("x", x), ("z", z))
    }
    assert all_sizes(model, given) == asked_each_time(model, monkeypatch, given)


@pytest.mark.parametrize("op", sorted(output_sizes.LIKE_FIRST))
@pytest.mark.parametrize("opset", [12, 17, 20])
def test_operators_that_keep_the_sizes(op: str, opset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(f"s = {op}(x) y = Neg(s)", inputs="float[N,3] x", outputs="y", opset=opset)
    assert all_sizes(model) == asked_each_time(model, monkeypatch)


@pytest.mark.parametrize("seed", range(6))
def test_answers_are_remembered_for_equal_questions_only(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ir.from_proto(generated_model(seed, 6))
    assert all_sizes(model) == asked_each_time(model, monkeypatch)


def test_attributes_and_contents_are_part_of_the_question(monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
        a = Flatten<axis = 1>(x) b = Flatten<axis = 2>(x)
        p = Constant<value_ints = [0, 12]>() q = Constant<value_ints = [0, 3, 4]>()
        c = Reshape(x, p) d = Reshape(x, q) e, f = Split<axis = 1>(x, h) g = Concat<axis = 1>(e, f)
    """
    model = graph(
        f"h = Constant<value_ints = [1, 2]>() {body}", inputs="float[N,3,4] x", outputs="a; b; c; d; g"
    )
    assert all_sizes(model) == asked_each_time(model, monkeypatch)


def test_a_question_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    answer = _Walk._answers

    def counted(walk: _Walk, node: ir.Node, symbolic: bool) -> object:
        asked.append(node.outputs[0].name)
        return answer(walk, node, symbolic)

    monkeypatch.setattr(_Walk, "_answers", counted)
    body = "a = Softmax(x) b = Softmax(a) c = Softmax<axis = 0>(b) y = Softmax(c)"
    concretise(graph(body, inputs="float[N,3] x", outputs="y"))
    assert asked == ["a", "c"]
