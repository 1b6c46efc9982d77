"""Branches removed from graphs: proved against the twin, and the twin can tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import graph, parameters

from onnxprune.branches import Removal, find_branches
from onnxprune.cost import cost_of
from onnxprune.errors import PlanError
from onnxprune.model.inputs import trial_shapes
from onnxprune.model.prepare import prepare
from onnxprune.ops.channels import Channels
from onnxprune.prove import prove
from onnxprune.rewrite.depth import make_depth_twin, remove_branches
from onnxprune.runtime import open_session
from onnxprune.types import Branch, Check

D, F = 8, 12
BODY = """
    u = MatMul(x, u_w) r = Relu(u) d = MatMul(r, d_w) h = Add(x, d)
    v = MatMul(h, v_w) g = Sigmoid(v) e = MatMul(g, e_w) y = Add(e, h)
"""
WEIGHTS = {"u_w": (D, F), "d_w": (F, D), "v_w": (D, F), "e_w": (F, D)}


def model_of(body: str = BODY, outputs: str = "y", opset: int = 17, **more: tuple[int, ...]) -> ir.Model:
    constants = {name: shape for name, shape in WEIGHTS.items() if name in body}
    return graph(body, inputs="float[N,T,8] x", outputs=outputs, constants={**constants, **more}, opset=opset)


def removed(model: ir.Model, values: Sequence[str]) -> tuple[ir.Model, Check]:
    """Remove the branches of these values, check what is left against the predicted cost, and prove it."""
    work, shapes = prepare(model)
    branches = [branch for branch in find_branches(work.graph, shapes)[0] if branch.value in values]
    assert len(branches) == len(values)
    pruned = remove_branches(work, branches)
    onnx.checker.check_model(ir.to_proto(pruned), full_check=True)
    gone = Removal(work.graph).gone_with(branches)
    assert cost_of(work.graph, Channels(shapes), gone=gone).params == parameters(pruned)
    return pruned, proof(model, work, pruned, branches, shapes.input_shapes)


def proof(
    model: ir.Model, work: ir.Model, pruned: ir.Model, branches: Sequence[Branch], sizes: dict
) -> Check:
    trials = trial_shapes(model, sizes)
    assert len(trials) == 2
    return prove(make_depth_twin(model, work, branches), pruned, trials, tolerance=1e-6)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize(
    ("values", "left"), [(["d"], {"v_w", "e_w"}), (["e"], {"u_w", "d_w"}), (["d", "e"], set())]
)
def test_a_branch_is_gone_with_all_that_was_for_it(values, left):
    pruned, check = removed(model_of(), values)
    assert check.passed, check.detail
    assert set(pruned.graph.initializers) == left
    assert [value.name for value in pruned.graph.outputs] == ["y"]


def test_an_output_of_the_model_keeps_its_name():
    """The sum is an output, and so is what takes its place."""
    pruned, check = removed(model_of(outputs="y; h"), ["d", "e"])
    assert check.passed, check.detail
    assert [value.name for value in pruned.graph.outputs] == ["y", "h"]
    assert operators(pruned) == ["Identity", "Identity"]


@pytest.mark.parametrize(
    "sums", ["t = Add(d, e) y = Add(x, t)", "t = Add(x, d) y = Add(t, e)", "y = Sum(d, x, e)"]
)
@pytest.mark.parametrize("values", [["d"], ["e"], ["d", "e"]])
def test_branches_side_by_side(sums, values):
    body = f"""
        u = MatMul(x, u_w) r = Relu(u) d = MatMul(r, d_w) v = MatMul(x, v_w) g = Tanh(v) e = MatMul(g, e_w)
        {sums}
    """
    pruned, check = removed(model_of(body), values)
    assert check.passed, check.detail
    assert len(pruned.graph.initializers) == 4 - 2 * len(values)


def test_a_sum_with_a_constant_keeps_it():
    pruned, check = removed(model_of("u = MatMul(x, u_w) d = MatMul(u, d_w) y = Sum(d, x, c)", c=(8,)), ["d"])
    assert check.passed, check.detail
    assert (operators(pruned), set(pruned.graph.initializers)) == (["Sum"], {"c"})


def test_what_others_read_stays():
    pruned, check = removed(model_of(outputs="y; u"), ["d"])
    assert check.passed, check.detail
    assert set(pruned.graph.initializers) == {"u_w", "v_w", "e_w"}


def test_the_given_model_is_not_changed():
    model = model_of()
    work, shapes = prepare(model)
    branches, _ = find_branches(work.graph, shapes)
    before = [ir.to_proto(m).SerializeToString(deterministic=True) for m in (model, work)]
    remove_branches(work, branches)
    make_depth_twin(model, work, branches)
    assert [ir.to_proto(m).SerializeToString(deterministic=True) for m in (model, work)] == before


@pytest.mark.parametrize("fault", ["the wrong branch", "the wrong operand", "one too many", "one too few"])
def test_the_proof_fails_where_something_else_was_removed(fault):
    model = model_of()
    work, shapes = prepare(model)
    first, second = find_branches(work.graph, shapes)[0]
    pruned = {
        "the wrong branch": remove_branches(work, [second]),
        "the wrong operand": remove_branches(work, [_other_operand(first)]),
        "one too many": remove_branches(work, [first, second]),
        "one too few": remove_branches(work, []),
    }[fault]
    assert not proof(model, work, pruned, [first], shapes.input_shapes).passed


def _other_operand(branch: Branch) -> Branch:
    fields = {name: getattr(branch, name) for name in Branch.__slots__}
    return Branch(**{**fields, "operand": 1 - branch.operand})


def test_what_is_not_finite_in_a_branch_does_not_spoil_the_proof():
    body = "n = Neg(x) a = Abs(n) u = Neg(a) l = Sqrt(u) f = MatMul(l, w) y = Add(x, f)"
    _, check = removed(model_of(body, w=(8, 8)), ["f"])
    assert check.passed, check.detail


def test_the_twin_of_an_old_opset():
    _, check = removed(model_of(opset=8), ["d"])
    assert check.passed, check.detail


def test_what_only_the_body_of_a_branch_captures_goes_with_it():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> small (float[3,8] x, bool b) => (float[3,8] y) {
            c = MatMul(x, c_w)
            f = If (b) <
                then_branch = one () => (float[3,8] tf) { tu = MatMul(x, u_w) tr = Relu(c) tf = Add(tu, tr) },
                else_branch = two () => (float[3,8] ef) { ef = Neg(c) }>
            d = MatMul(f, d_w) y = Add(x, d)
        }"""
    )
    random = np.random.default_rng(0)
    for name in ("c_w", "u_w", "d_w"):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(random.standard_normal((8, 8)).astype(np.float32), name)
        )
    model = ir.from_proto(proto)
    work, shapes = prepare(model)
    branches, _ = find_branches(work.graph, shapes)
    pruned = remove_branches(work, branches)
    assert (operators(pruned), list(pruned.graph.initializers)) == (["Identity"], [])
    x = np.ones((3, 8), np.float32)
    feeds = {"x": x, "b": np.array(True)}
    for one in (pruned, make_depth_twin(model, work, branches)):
        np.testing.assert_array_equal(open_session(one).run(feeds)["y"], x)


def test_a_plan_of_another_model_is_refused():
    model = model_of()
    work, shapes = prepare(model)
    branches, _ = find_branches(work.graph, shapes)
    with pytest.raises(PlanError, match="not in this model"):
        remove_branches(model_of("u = MatMul(x, u_w) y = MatMul(u, d_w)"), branches[1:])
