"""Functions written out: the same outputs, names and weights, whatever the calls look like."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import ModelError
from onnxprune.model.functions import without_functions
from onnxprune.prove import prove

HEAD = '<ir_version: 10, opset_import: ["" : 18, "local" : 1]>'


def model(main: str, *functions: str) -> ir.Model:
    text = f"{HEAD} g {main}" + "".join(f'<domain: "local", opset_import: {text}' for text in functions)
    return ir.from_proto(onnx.parser.parse_model(text))


def check_same(given: ir.Model, runs: int = 2, **shapes: tuple[int, ...]) -> ir.Model:
    """Write the functions out, and compare with what ONNX Runtime makes of the calls."""
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    flat = without_functions(given)
    assert flat is not given
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before
    for kind in ("inputs", "outputs"):
        assert [v.name for v in getattr(flat.graph, kind)] == [v.name for v in getattr(given.graph, kind)]
    check = prove(given, flat, [shapes] * runs, tolerance=0)
    assert check.passed, check.detail
    return flat


def op_types(flat: ir.Model) -> list[str]:
    return [node.op_type for node in flat.graph.all_nodes()]


def test_a_model_without_functions_is_itself() -> None:
    plain = model("(float[2,3] x) => (float[2,3] y) { y = Relu(x) }")
    assert without_functions(plain) is plain


def test_calls_within_functions_attributes_and_defaults() -> None:
    """The slope goes through two calls; one of them is left to the default."""
    flat = check_same(
        model(
            "(float[2,3] x, float[3,4] w) => (float[2,4] y) <float[4] one = {1, 1, 1, 1}> {"
            "  h = local.outer <alpha = 0.3> (x, w) g = local.leak(h) y = Add(g, one) }",
            '["" : 18, "local" : 1]> outer <alpha: float = 0.1> (a, w) => (r) {'
            "  h = MatMul(a, w) r = local.leak <slope: float = @alpha> (h) }",
            '["" : 18]> leak <slope: float = 0.5> (a) => (r) {'
            "  h = LeakyRelu <alpha: float = @slope> (a) c = Constant <value_float: float = @slope> ()"
            "  r = Add(h, c) }",
        ),
        x=(2, 3),
        w=(3, 4),
    )
    assert not flat.functions
    slopes = [
        node.attributes["alpha"].as_float() for node in flat.graph.all_nodes() if node.op_type == "LeakyRelu"
    ]
    np.testing.assert_allclose(slopes, [0.3, 0.5], rtol=1e-6)


def test_names_that_clash_everywhere() -> None:
    """h is a value of the graph, of two functions, and of a branch; calls stand in branches too."""
    flat = check_same(
        model(
            """(float[2,3] x, bool c) => (float[2,3] y, float[2,3] s) <float[3,3] k = {1,2,3,4,5,6,7,8,9}> {
                h = local.one(x) y = local.two(h)
                s = If(c) <then_branch = t () => (float[2,3] o) { r = local.one(y) o = Mul(r, h) },
                           else_branch = e () => (float[2,3] o) { q = MatMul(y, k) o = local.two(q) }> }""",
            '["" : 18]> one (h) => (r) { t = Relu(h) r = Sigmoid(t) }',
            '["" : 18]> two (r) => (h) { t = Neg(r) h = Tanh(t) }',
        ),
        runs=4,
        x=(2, 3),
        c=(),
    )
    names = [output.name for node in flat.graph.all_nodes() for output in node.outputs]
    assert len(set(names)) == len(names)
    assert "k" in flat.graph.initializers


def test_outputs_that_nobody_reads_and_inputs_that_are_left_out() -> None:
    flat = check_same(
        model(
            "(float[2,3] x) => (float[2,3] y) { h, unread = local.both(x) y = local.clip(h) }",
            '["" : 18]> both (a) => (r, q) { q = Relu(a) r = Sigmoid(q) }',
            '["" : 18]> clip (a, low) => (r) { r = Clip(a, low) }',
        ),
        x=(2, 3),
    )
    assert op_types(flat) == ["Relu", "Sigmoid", "Clip"]


def test_an_unnamed_output_that_the_function_itself_reads() -> None:
    given = model(
        "(float[2,3] x) => (float[2,3] y) { y, q = local.both(x) }",
        '["" : 18]> both (a) => (r, q) { q = Relu(a) r = Sigmoid(q) }',
    )
    next(iter(given.graph)).outputs[1].name = ""  # ONNX Runtime wants a name there, ONNX does not
    plain = model("(float[2,3] x) => (float[2,3] y) { q = Relu(x) y = Sigmoid(q) }")
    assert prove(plain, without_functions(given), [{"x": (2, 3)}], tolerance=0).passed


def test_a_function_that_returns_its_input_leaves_the_interface_alone() -> None:
    """ONNX Runtime refuses such functions, so the reference is the plain graph."""
    given = model(
        "(float[2,3] x) => (float[2,3] y, float[2,3] z) { y, z = local.pass(x) }",
        '["" : 18]> pass (a) => (a, r) { r = Relu(a) }',
    )
    flat = without_functions(given)
    plain = model("(float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Identity(x) z = Relu(x) }")
    assert prove(plain, flat, [{"x": (2, 3)}], tolerance=0).passed


def test_a_function_of_another_opset_in_which_nothing_changed() -> None:
    flat = check_same(
        model(
            "(float[2,3] x) => (float[2,3] y) { y = local.f(x) }",
            '["" : 17]> f (a) => (r) { h = Relu(a) r = Softmax(h) }',
        ),
        x=(2, 3),
    )
    assert flat.opset_imports[""] == 18


def test_a_function_of_another_opset_that_means_something_else_stays() -> None:
    """In opset 17 the axes of ReduceMean are an attribute, in 18 an input. ONNX Runtime refuses it."""
    flat = without_functions(
        model(
            "(float[2,3] x) => (float[2,1] y) { h = local.good(x) y = local.old(h) }",
            '["" : 17]> old (a) => (r) { r = ReduceMean <axes = [1]> (a) }',
            '["" : 18]> good (a) => (r) { r = Relu(a) }',
        )
    )
    assert op_types(flat) == ["Relu", "old"]
    assert [name for _, name, _ in flat.functions] == ["old"]


def test_a_call_that_does_not_fit_is_refused() -> None:
    given = model(
        "(float[2,3] x) => (float[2,3] y) { y = local.f(x, x) }", '["" : 18]> f (a) => (r) { r = Relu(a) }'
    )
    with pytest.raises(ModelError, match="can't be written out"):
        without_functions(given)
