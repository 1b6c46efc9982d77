"""Names, constants and Identity nodes across graphs within graphs."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from onnxprune.model.prepare import prepare
from onnxprune.model.scopes import graphs_of, number_nodes, numbered_nodes
from onnxprune.prove import prove

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def model(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f"{HEAD} g {text}"))


def check_same(given: ir.Model, **shapes: tuple[int, ...]) -> ir.Model:
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    work, known = prepare(given)
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before
    assert known.unknown == {}
    number_nodes(given)
    check = prove(given, work, [shapes] * 2, tolerance=0)
    assert check.passed, check.detail
    names = [v.name for graph in graphs_of(work) for node in graph for v in node.outputs]
    assert len(set(names)) == len(names)
    assert all(not graph.initializers for graph in graphs_of(work)[1:])
    return work


def test_two_outputs_of_one_value_keep_their_names() -> None:
    text = "(float[2,3] x) => (float[2,3] y, float[2,3] z) { r = Relu(x) y = Identity(r) z = Identity(r) }"
    work = check_same(model(text), x=(2, 3))
    assert [output.name for output in work.graph.outputs] == ["y", "z"]


BRANCHES = """(float[2,3] x, bool c) => (float[2,3] y) {{
    r = Relu(x) y = If(c) <then_branch = t () => (float[2,3] o) {{ {then} }},
                           else_branch = e () => (float[2,3] o) {{ {other} }}> }}"""


@pytest.mark.parametrize(
    ("then", "other"),
    [
        ("o = Identity(r)", "i = Identity(r) o = Neg(i)"),  # the branch must go on to make its output itself
        ("o = Identity(x)", "o = Constant<value = float[2,3] {1, 2, 3, 4, 5, 6}>()"),
        (
            "k = Constant<value = float {1.0}>() o = Add(r, k)",
            "k = Constant<value = float {2.0}>() o = Mul(r, k)",
        ),
        ("k = Neg(r) m = Identity(k) o = Identity(m)", "k = Exp(r) o = Identity(k)"),
    ],
)
def test_what_branches_return(then: str, other: str) -> None:
    check_same(model(BRANCHES.format(then=then, other=other)), x=(2, 3), c=())


def test_an_initializer_that_a_branch_returns() -> None:
    given = model(BRANCHES.format(then="o = Neg(r)", other="o = Exp(r)"))
    branch = graphs_of(given)[1]
    constant = ir.Value(
        name="own",
        type=ir.TensorType(ir.DataType.FLOAT),
        shape=ir.Shape([2, 3]),
        const_value=ir.tensor([[1.0, 2, 3], [4, 5, 6]], name="own"),
    )
    branch.register_initializer(constant)
    branch.outputs[0] = constant
    branch.remove(branch[0])
    check_same(given, x=(2, 3), c=())


def test_a_body_with_a_default_for_an_input() -> None:
    """Loop sets every input of its body: an initializer of the same name is not what is read."""
    given = model("""(float[2,3] x) => (float[2,3] y) <int64 m = {3}> {
        y = Loop(m, , x) <body = b (int64 i, bool go, float[2,3] h) => (bool on, float[2,3] t) {
            t = Tanh(h) on = Identity(go) }> }""")
    body = graphs_of(given)[1]
    body.inputs[2].const_value = ir.tensor([[9.0, 9, 9], [9, 9, 9]], name="h")
    body.initializers.add(body.inputs[2])
    work, shapes = prepare(given)
    body = graphs_of(work)[1]
    assert not body.inputs[2].is_initializer()
    assert not work.graph.initializers.keys() & {"h"}
    assert shapes.contents.get(body.inputs[2]) is None


def test_a_decided_condition_leaves_its_branch() -> None:
    """The rank of x is known, so this is no question; one If stands within the other, one makes an output."""
    given = model("""(float[N,3] x) => (float[N,3] y, float[N,3] z) <int64 two = {2}, int64 three = {3}> {
        s = Shape(x) n = Size(s) c = Equal(n, two)
        y = If(c) <then_branch = t () => (float[N,3] o) {
                       d = Equal(n, three)
                       o = If(d) <then_branch = tt () => (float[N,3] p) { p = Neg(x) },
                                  else_branch = te () => (float[N,3] p) { p = Exp(x) }> },
                   else_branch = e () => (float[N,3] o) {
                       o = If(c) <then_branch = et () => (float[N,3] p) { p = Abs(x) },
                                  else_branch = ee () => (float[N,3] p) { p = Sin(x) }> }>
        z = Relu(y) }""")
    work = check_same(given, x=(2, 3))
    assert "If" not in [node.op_type for node in work.graph.all_nodes()]
    assert [output.name for output in work.graph.outputs] == ["y", "z"]
    assert {user.graph for user, _ in work.graph.inputs[0].uses()} == {work.graph}


def test_a_condition_on_a_symbolic_size_stays_open() -> None:
    given = model("""(float[N,3] x) => (float[N,3] y) <int64 two = {2}, int64 zero = {0}> {
        s = Shape(x) n = Gather(s, zero) c = Equal(n, two)
        y = If(c) <then_branch = t () => (float[N,3] o) { o = Neg(x) },
                   else_branch = e () => (float[N,3] o) { o = Exp(x) }> }""")
    work = check_same(given, x=(2, 3))
    assert "If" in [node.op_type for node in work.graph.all_nodes()]


def test_arithmetic_on_sizes_within_a_body_is_done_once() -> None:
    given = model("""(float[N,6] x, bool c) => (float[N,6] y) <int64 one = {1}, int64[1] minus = {-1}> {
        y = If(c) <then_branch = t () => (float[N,6] o) {
                       s = Shape(x) d = Gather(s, one) f = Cast<to = 1>(d) o = Div(x, f) },
                   else_branch = e () => (float[N,6] o) {
                       s = Shape(x) k = Constant<value = int64[1] {1}>() d = Gather(s, k)
                       q = Concat<axis = 0>(minus, d) r = Reshape(x, q) o = Exp(r) }> }""")
    work = check_same(given, x=(2, 6), c=())
    assert [node.op_type for node in work.graph.all_nodes()] == ["If", "Div", "Reshape", "Exp"]


def test_numbers_outlive_copies_and_removals() -> None:
    given = model(BRANCHES.format(then="o = Neg(r)", other="k = Exp(r) o = Tanh(k)"))
    copy = given.clone()
    number_nodes(copy)
    again = copy.clone()
    again.graph.remove(again.graph[0])
    assert {number: node.op_type for number, node in numbered_nodes(again).items()} == {
        number: node.op_type for number, node in numbered_nodes(copy).items() if number > 0
    }
