"""Models with functions and control flow, from a wish to a proved file and back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import check_cut, open_groups
from generated import generated_model
from onnx import numpy_helper

import onnxprune
from onnxprune.analyze import analyze
from onnxprune.errors import PlanError, ProofError
from onnxprune.inspection import inspect_model
from onnxprune.model.digest import structure_digest
from onnxprune.model.float32 import in_float32
from onnxprune.planning import gathering
from onnxprune.runtime import open_session

FUNCTIONS = """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
    net (float[N,6] x) => (float[N,3] y) {
        h = MatMul(x, in_w) a = local.Block <slope = 0.3> (h, up_w, down_w)
        b = local.Block(a, wide_w, narrow_w) y = MatMul(b, out_w)
    }
    <domain: "local", opset_import: ["" : 18, "local" : 1]>
    Block <slope: float = 0.1> (x, up, down) => (y) {
        h = MatMul(x, up) g = local.Leak <slope: float = @slope> (h) d = MatMul(g, down) y = Add(d, x) }
    <domain: "local", opset_import: ["" : 17]>
    Leak <slope: float> (x) => (y) { h = LeakyRelu <alpha: float = @slope> (x) y = Tanh(h) }"""

FUNCTION_WEIGHTS = {
    "in_w": (6, 16), "up_w": (16, 32), "down_w": (32, 16), "wide_w": (16, 24), "narrow_w": (24, 16),
    "out_w": (16, 3),
}  # fmt: skip

BRANCHES = """<ir_version: 10, opset_import: ["" : 18]>
    net (float[N,3,6,6] x, bool flag) => (float[N,5,4,4] y) {
        h = Conv(x, a_w) r = Relu(h)
        q = If(flag) <then_branch = yes () => (float[N,16,4,4] o) { u = Conv(r, then_w) o = Relu(u) },
                      else_branch = no () => (float[N,16,4,4] o) {
                          s = Shape(r) u = Conv(r, else_w) t = Sigmoid(u) o = Reshape(t, s) }>
        y = Conv(q, b_w)
    }"""

BRANCH_WEIGHTS = {
    "a_w": (16, 3, 3, 3), "then_w": (16, 16, 1, 1), "else_w": (16, 16, 1, 1), "b_w": (5, 16, 1, 1),
}  # fmt: skip


def model(
    text: str, shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype: type = np.float32
) -> onnx.ModelProto:
    """Parse a model, and put random weights where they belong: those of a branch into the branch."""
    proto = onnx.parser.parse_model(text.replace("float[", "float16[") if dtype == np.float16 else text)
    random = np.random.default_rng(seed)
    inner = {
        f"{name}_w": attribute.g
        for node in proto.graph.node
        for attribute in node.attribute
        for name in ("then", "else")
        if attribute.name == f"{name}_branch"
    }
    for name, shape in shapes.items():
        weights = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(dtype)
        inner.get(name, proto.graph).initializer.append(numpy_helper.from_array(weights, name))
    onnx.checker.check_model(proto)
    return proto


CASES = [
    pytest.param(
        FUNCTIONS, FUNCTION_WEIGHTS, {"in_w": (6, 8), "up_w": (8, 16), "narrow_w": (12, 8)}, id="functions"
    ),
    pytest.param(BRANCHES, BRANCH_WEIGHTS, {"a_w": (8, 3, 3, 3), "then_w": (8, 8, 1, 1)}, id="branches"),
]


@pytest.mark.parametrize(("text", "weights", "expected"), CASES)
def test_prune_save_verify_plan_apply(
    tmp_path: Path, text: str, weights: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    """The plan of one model applies to another of the same graph; what is saved holds what was planned."""
    file, out, plan_folder = tmp_path / "model.onnx", tmp_path / "small.onnx", tmp_path / "small.plan"
    onnx.save(model(text, weights), file)
    result = onnxprune.prune(onnxprune.load(file), amount=0.5)
    report = onnxprune.save_pruned(result, out, against=file, plan_folder=plan_folder)
    assert report.passed
    names = [check.name for check in report.checks]
    assert "planned shapes" in names
    assert ("functions written out" in names) == (text == FUNCTIONS)
    small = onnxprune.load(out)
    assert not small.functions
    for name, shape in expected.items():
        assert small.graph.initializers[name].const_value.shape.numpy() == shape  # type: ignore[union-attr]

    onnx.save(model(text, weights, seed=1), file)
    retrained = onnxprune.load(file)
    assert structure_digest(retrained) == result.plan.structure_digest
    again = onnxprune.apply_plan(retrained, onnxprune.load_plan(plan_folder))
    assert again.report.passed
    assert [group.removed.tolist() for group in again.plan.groups] == [
        group.removed.tolist() for group in result.plan.groups
    ]
    assert onnxprune.save_pruned(again, out, against=file).passed


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        (FUNCTIONS, "y = Tanh(h)", "y = Sigmoid(h)"),
        (FUNCTIONS, "slope = 0.3", "slope = 0.4"),
        (BRANCHES, "t = Sigmoid(u)", "t = Tanh(u)"),
    ],
)
def test_a_plan_for_another_body_is_refused(text: str, old: str, new: str) -> None:
    weights = FUNCTION_WEIGHTS if text == FUNCTIONS else BRANCH_WEIGHTS
    plan = onnxprune.plan(ir.from_proto(model(text, weights)), amount=0.5)
    other = ir.from_proto(model(text.replace(old, new), weights))
    with pytest.raises(PlanError, match="another graph"):
        onnxprune.apply_plan(other, plan)


def test_verify_sees_a_wrong_shape_inside_a_branch(tmp_path: Path) -> None:
    """A consumer in a branch reads a weight that is not as planned."""
    result = onnxprune.prune(ir.from_proto(model(BRANCHES, BRANCH_WEIGHTS)), amount=0.5)
    file = tmp_path / "other.onnx"
    onnxprune.save(result.model, file)
    assert onnxprune.verify(file, plan=result.plan).passed
    onnxprune.save(ir.from_proto(model(BRANCHES, BRANCH_WEIGHTS)), file)
    checks = {check.name: check for check in onnxprune.verify(file, plan=result.plan).checks}
    assert not checks["planned shapes"].passed


@pytest.mark.parametrize(("text", "weights", "expected"), CASES)
def test_16_bits(
    text: str, weights: dict[str, tuple[int, ...]], expected: dict[str, tuple[int, ...]]
) -> None:
    given = ir.from_proto(model(text, weights, dtype=np.float16))
    whole = in_float32(given)
    assert open_session(whole, optimize="none").inputs["x"].dtype == np.float32
    result = onnxprune.prune(given, amount=0.5)
    for name, shape in expected.items():
        tensor = result.model.graph.initializers[name].const_value
        assert tensor is not None
        assert (tensor.dtype, tensor.shape.numpy()) == (ir.DataType.FLOAT16, shape)


def test_a_file_may_grow_by_the_nodes_of_its_functions(tmp_path: Path) -> None:
    """28 calls of 30 nodes: more text than weights."""
    steps = " ".join(f"h{n + 1} = Tanh(h{n})" for n in range(28))
    calls = " ".join(f"c{n + 1} = local.Long(c{n})" for n in range(28))
    text = f"""<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        net (float[N,6] x) => (float[N,3] y) {{ c0 = MatMul(x, in_w) {calls} y = MatMul(c28, out_w) }}
        <domain: "local", opset_import: ["" : 18]>
        Long (x) => (y) {{ h0 = Neg(x) {steps} y = Neg(h28) }}"""
    file = tmp_path / "model.onnx"
    onnx.save(model(text, {"in_w": (6, 8), "out_w": (8, 3)}), file)
    result = onnxprune.prune(onnxprune.load(file), amount=0.5, align=1)
    out = tmp_path / "small.onnx"
    assert onnxprune.save_pruned(result, out, against=file).passed
    assert out.stat().st_size > 2 * file.stat().st_size


def test_functions_that_are_written_out_wrongly_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = gathering.analyze

    def forged(*arguments: object, **options: object) -> object:
        analysis = honest(*arguments, **options)  # type: ignore[arg-type]
        for node in (*analysis.original.graph, *analysis.model.graph):
            if node.op_type == "LeakyRelu":
                node.attributes["alpha"] = ir.AttrFloat32("alpha", 0.7)
        return analysis

    monkeypatch.setattr("onnxprune.planning.gathering.analyze", forged)
    with pytest.raises(ProofError, match="writing out the functions"):
        onnxprune.prune(ir.from_proto(model(FUNCTIONS, FUNCTION_WEIGHTS)), amount=0.5)


def test_inspect_counts_what_functions_do(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(model(FUNCTIONS, FUNCTION_WEIGHTS), file)
    sections = inspect_model(file).sections
    assert [row for row in sections["operators"] if not row["known"]] == []
    assert sections["model"]["macs"] == 6 * 16 + 2 * 16 * 32 + 2 * 16 * 24 + 16 * 3
    assert sections["model"]["functions"] == 2


def test_masks_reach_weights_in_branches(tmp_path: Path) -> None:
    file, out = tmp_path / "model.onnx", tmp_path / "sparse.onnx"
    onnx.save(model(BRANCHES, BRANCH_WEIGHTS), file)
    result = onnxprune.prune(onnxprune.load(file), pattern="2:4")
    assert onnxprune.save_pruned(result, out, against=file).passed
    assert {"then_w", "else_w"} <= set(result.plan.masks)


def as_branch(graph: onnx.GraphProto, prefix: str, gain: float) -> onnx.GraphProto:
    """Return a graph that captures the inputs of another and computes the same with other weights."""
    branch = onnx.GraphProto(name=prefix)
    outer = {value.name for value in graph.input}
    for constant in graph.initializer:
        array = numpy_helper.to_array(constant)
        scaled = array * np.float32(gain) if array.dtype == np.float32 else array
        branch.initializer.append(numpy_helper.from_array(scaled, prefix + constant.name))
    for node in graph.node:
        copy = branch.node.add()
        copy.CopyFrom(node)
        copy.name = prefix + node.name
        copy.input[:] = [name if not name or name in outer else prefix + name for name in node.input]
        copy.output[:] = [name and prefix + name for name in node.output]
    for output in graph.output:
        branch.output.add(name=prefix + output.name, type=output.type)
    return branch


@pytest.mark.parametrize("seed", [2, 4, 6])
def test_generated_graphs_as_branches(seed: int) -> None:
    """Each branch has the groups that the graph has by itself, and no others; both are cut and proved."""
    alone = generated_model(seed, 5)
    flag = onnx.helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [])
    names = [output.name for output in alone.graph.output]
    choice = onnx.helper.make_node(
        "If",
        ["flag"],
        names,
        "choice",
        then_branch=as_branch(alone.graph, "then_", 1.0),
        else_branch=as_branch(alone.graph, "else_", 0.5),
    )
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
    graph = onnx.helper.make_graph([choice], "both", [*alone.graph.input, flag], outputs)
    both = onnx.helper.make_model(graph, opset_imports=alone.opset_import, ir_version=alone.ir_version)
    analysis = check_cut(ir.from_proto(onnx.shape_inference.infer_shapes(both)))
    expected = open_groups(analyze(ir.from_proto(alone))).values()
    assert sorted(open_groups(analysis).values()) == sorted([*expected, *expected])


def test_constant_channels_that_branches_read_are_cut_without_folding() -> None:
    """Three channels are constant; what a branch makes of them has no bias outside to go to."""
    weights = model(BRANCHES, BRANCH_WEIGHTS)
    array = numpy_helper.to_array(weights.graph.initializer[0]).copy()
    array[:3] = 0
    weights.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "a_w"))
    bias = numpy_helper.from_array(np.full(16, 0.7, np.float32), "a_b")
    weights.graph.initializer.append(bias)
    weights.graph.node[0].input.append("a_b")
    result = onnxprune.prune(ir.from_proto(weights), amount=0.4, align=1)
    assert result.report.passed


#: The shape of x decides: the first branch is always taken.
ALWAYS = """<ir_version: 10, opset_import: ["" : 18]>
    net (float[N,16] x) => (float[N,16] y) {
        u = MatMul(x, up_w) r = Relu(u) d = MatMul(r, down_w) h = Add(d, x)
        s = Shape(h) rank = Size(s) two = Constant<value_int = 2>() flat = Equal(rank, two)
        y = If(flat) <then_branch = yes () => (float[N,16] o) {
                           v = MatMul(h, wide_w) g = Tanh(v) e = MatMul(g, narrow_w) o = Add(h, e) },
                      else_branch = no () => (float[N,16] o) { o = Relu(h) }>
    }"""

RESIDUAL = {name: FUNCTION_WEIGHTS[name] for name in ("up_w", "down_w", "wide_w", "narrow_w")}


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        pytest.param(FUNCTIONS, FUNCTION_WEIGHTS, id="functions"),
        pytest.param(ALWAYS, RESIDUAL, id="a branch that is always taken"),
    ],
)
def test_residual_branches_in_bodies_go_whole(
    tmp_path: Path, text: str, weights: dict[str, tuple[int, ...]]
) -> None:
    file, out, plan_folder = tmp_path / "model.onnx", tmp_path / "small.onnx", tmp_path / "small.plan"
    onnx.save(model(text, weights), file)
    options = {"pattern": "layers", "amount": 0.5, "score": "l2", "protect": ["up_w"]}
    result = onnxprune.prune(onnxprune.load(file), **options)  # type: ignore[arg-type]
    report = onnxprune.save_pruned(result, out, against=file, plan_folder=plan_folder)
    assert report.passed
    assert ("functions written out" in [check.name for check in report.checks]) == (text == FUNCTIONS)
    left = set(onnxprune.load(out).graph.initializers)
    assert set(weights) - left == {"wide_w", "narrow_w"}
    again = onnxprune.apply_plan(onnxprune.load(file), onnxprune.load_plan(plan_folder))
    assert set(again.model.graph.initializers) == left
