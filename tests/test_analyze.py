"""Channel groups of whole models: golden files, opaque operators, subgraphs, and what is said of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import check_cut, frozen_groups, graph, graph_proto, group_of, open_groups, positions
from generated import generated_model
from golden.regenerate import MODELS, described

from onnxprune.analyze import analyze, find_groups
from onnxprune.errors import UsageError
from onnxprune.pipeline import prune

GOLDEN = Path(__file__).parent / "golden"
IMAGE = {"a_w": (8, 3, 1, 1), "b_w": (8, 8, 1, 1), "c_w": (4, 8, 1, 1)}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_groups_are_those_of_the_golden_file(name: str) -> None:
    """A group that became coarser still passes every proof; this is where it shows.

    After a change that is meant: ``python tests/golden/regenerate.py``, then read the difference.
    """
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    assert described(MODELS[name]()) == expected


@pytest.mark.parametrize("name", sorted(MODELS))
def test_golden_models_can_be_cut(name: str) -> None:
    check_cut(MODELS[name]())


def test_every_golden_file_belongs_to_a_model() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == sorted(MODELS)


# --- what nothing is known of ---


def test_an_unknown_operator_freezes_what_it_touches_and_nothing_else() -> None:
    body = """
        h = Conv(x, a_w) u = com.microsoft.ScaledSiLU(h) b = Conv(u, b_w) r = Relu(b) y = Conv(r, c_w)
    """
    model = graph(body, constants=IMAGE | {"b_w": (7, 8, 1, 1), "c_w": (4, 7, 1, 1)})
    next(n for n in model.graph if n.op_type == "ScaledSiLU").outputs[0].shape = ir.Shape(["N", 8, 6, 6])
    analysis = check_cut(model, input_shapes={"x": [2, 3, 6, 6]})
    assert "nothing is known of com.microsoft.ScaledSiLU" in frozen_groups(analysis)["a_w"]
    assert [skipped.name for skipped in analysis.unknown][:1] == ["n1"]


def test_a_static_shape_behind_an_unknown_operator_lets_the_rest_be_cut() -> None:
    body = """
        h = Conv(x, a_w) u = com.microsoft.ScaledSiLU(h) b = Conv(u, b_w) r = Relu(b) y = Conv(r, c_w)
    """
    model = graph(
        body, inputs="float[2,3,6,6] x", constants=IMAGE | {"b_w": (7, 8, 1, 1), "c_w": (4, 7, 1, 1)}
    )
    next(n for n in model.graph if n.op_type == "ScaledSiLU").outputs[0].shape = ir.Shape([2, 8, 6, 6])
    analysis = check_cut(model)
    assert open_groups(analysis) == {"b_w": 7}
    assert len(analysis.unknown) == 1


def conditional() -> ir.Model:
    """If chooses between two uses of h, which both branches capture; one reads an outer weight too."""
    branch = onnx.parser.parse_graph("yes () => (float[N,8,6,6] o) {s = Sigmoid(h) o = Mul(s, gate)}")
    other = onnx.parser.parse_graph("no () => (float[N,8,6,6] p) {p = Relu(h)}")
    proto = graph_proto(
        "h = Conv(x, a_w) q = Identity(h) b = Conv(q, b_w) r = Relu(b) y = Conv(r, c_w)",
        constants=IMAGE
        | {"b_w": (7, 8, 1, 1), "c_w": (4, 7, 1, 1), "flag": np.array(True), "gate": (8, 1, 1)},
    )
    old = next(n for n in proto.graph.node if n.op_type == "Identity")
    old.CopyFrom(
        onnx.helper.make_node("If", ["flag"], ["q"], "chosen", then_branch=branch, else_branch=other)
    )
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("q", 1, [2, 8, 6, 6]))
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    for info in list(proto.graph.value_info):
        if info.name == "q" and info.type.tensor_type.shape.dim[0].dim_param:
            proto.graph.value_info.remove(info)
    return ir.from_proto(proto)


def test_values_that_an_unknown_operator_captures_are_frozen() -> None:
    model = conditional()
    chosen = next(node for node in model.graph if node.op_type == "If")
    chosen.op_type, chosen.domain = "Choose", "org.example"
    analysis = analyze(model)
    assert open_groups(analysis) == {"b_w": 7}
    assert "nothing is known of org.example.Choose" in frozen_groups(analysis)["a_w"]


def test_a_weight_that_a_subgraph_reads_as_well_stays_whole_for_it() -> None:
    """The main graph cuts its own use of the weight; the branch goes on to read all of it."""
    model = conditional()
    proto = ir.to_proto(model)
    conv = next(n for n in proto.graph.node if n.input and n.input[-1] == "c_w")
    gated = onnx.helper.make_node("PRelu", ["r", "slope"], ["g"], "gated")
    position = list(proto.graph.node).index(conv)
    proto.graph.node.insert(position, gated)
    conv = next(n for n in proto.graph.node if n.input and n.input[-1] == "c_w")
    conv.input[0] = "g"
    slope = onnx.numpy_helper.from_array(np.linspace(0, 1, 7, dtype=np.float32).reshape(7, 1, 1), "slope")
    proto.graph.initializer.append(slope)
    branch = next(a for n in proto.graph.node for a in n.attribute if a.name == "else_branch").g
    branch.node[0].CopyFrom(onnx.helper.make_node("Relu", ["h"], ["inner"]))
    branch.node.append(onnx.helper.make_node("ReduceSum", ["slope"], ["total"], keepdims=0))
    branch.node.append(onnx.helper.make_node("Add", ["inner", "total"], ["p"]))
    analysis = check_cut(ir.from_proto(proto))
    assert ("slope", 0, False) in positions(group_of(analysis, "b_w", 0))


# --- what is said ---


def test_find_groups_are_the_groups_of_the_analysis() -> None:
    model = ir.from_proto(generated_model(3, 4))
    assert [group.name for group in find_groups(model)] == [group.name for group in analyze(model).groups]


def test_names_are_different_and_stable() -> None:
    for seed in range(8):
        names = [group.name for group in analyze(ir.from_proto(generated_model(seed, 6))).groups]
        assert len(set(names)) == len(names)
        assert names == [group.name for group in analyze(ir.from_proto(generated_model(seed, 6))).groups]


def test_every_position_belongs_to_a_channel_of_its_group() -> None:
    for seed in range(8):
        analysis = analyze(ir.from_proto(generated_model(seed, 6)))
        for group in analysis.groups:
            assert len(analysis.units[group.name]) == group.size
            for member in group.members:
                tensor = analysis.model.graph.initializers[member.tensor].const_value
                assert tensor is not None
                assert member.channel_at.shape == (tensor.shape.numpy()[member.axis],)
                assert member.channel_at.dtype == np.int32
                assert -1 <= member.channel_at.min() <= member.channel_at.max() < group.size
            if group.frozen is None:
                assert group.size > 1
                assert any(not member.contracted for member in group.members)


def test_a_frozen_channel_does_not_freeze_those_beside_it() -> None:
    """One channel is picked for a second output: the others may still go."""
    body = "h = Conv(x, a_w) y = Conv(h, c_w) z = Gather<axis = 1>(h, i)"
    model = graph(body, outputs="y; z", constants=IMAGE | {"i": np.array(5)})
    analysis = check_cut(model)
    assert list(open_groups(analysis).values()) == [7]
    assert [g.size for g in analysis.groups if g.frozen and "picked by its number" in g.frozen] == [1]


def test_names_of_exporters_are_readable() -> None:
    model = graph(
        "h = MatMul(x, a_w) y = MatMul(h, c)", inputs="float[N,6] x", constants={"a_w": (6, 8), "c": (8, 3)}
    )
    model.graph.initializers["a_w"].name = "layers.0.fc.weight"
    assert list(open_groups(analyze(model))) == ["layers.0.fc"]


def test_names_from_torch_scopes() -> None:
    model = graph(
        "h = MatMul(x, a) y = MatMul(h, c)", inputs="float[N,6] x", constants={"a": (6, 8), "c": (8, 3)}
    )
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'encoder.fc1', 'matmul']"
    assert next(iter(open_groups(analyze(model)))) == "encoder.fc1"
    model.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = "not a list ("
    assert next(iter(open_groups(analyze(model)))) == "n0"


def test_sizes_can_be_given() -> None:
    model = graph("h = Conv(x, a_w) y = Conv(h, c_w)", inputs="float[N,3,H,W] x", constants=IMAGE)
    analysis = analyze(model, input_shapes={"x": [1, 3, 9, 5]})
    assert analysis.shapes.input_shapes == {"x": (1, 3, 9, 5)}
    with pytest.raises(UsageError, match="no input"):
        analyze(model, input_shapes={"z": [1]})


def test_a_graph_without_weights_has_no_groups() -> None:
    assert find_groups(graph("y = Relu(x)")) == ()


def test_constant_nodes_and_identity_chains_hide_no_weight() -> None:
    body = """
        k = Constant<value = float[2,3,1,1] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}>() i = Identity(k) j = Identity(i)
        h = Conv(x, j) r = Identity(h) s = Identity(r) t = Relu(s) y = Conv(t, c_w)
    """
    analysis = check_cut(graph(body, constants={"c_w": (4, 2, 1, 1)}))
    assert list(open_groups(analysis).values()) == [2]


def test_both_uses_of_a_shared_weight_lose_the_same_channels() -> None:
    """One network looks at two inputs; a copy of its weights for each would make the file larger."""
    constants = {"a_w": (8, 3, 3, 3), "c_w": (4, 8, 1, 1)}
    body = """
        h = Conv(x, a_w) r = Relu(h) p = Conv(r, c_w)
        i = Conv(z, a_w) s = Relu(i) q = Conv(s, c_w)
        y = Sub(p, q)
    """
    model = graph(body, inputs="float[N,3,6,6] x, float[N,3,6,6] z", constants=constants)
    analysis = check_cut(model)
    assert open_groups(analysis) == {"a_w": 8}
    pruned = prune(model, amount=0.5, align=1).model
    assert {name: value.shape.numpy() for name, value in pruned.graph.initializers.items()} == {
        "a_w": (4, 3, 3, 3),
        "c_w": (4, 4, 1, 1),
    }


def test_equal_vectors_that_are_stored_once_tie_nothing() -> None:
    constants = {"a_w": (8, 3, 1, 1), "b_w": (8, 8, 1, 1), "c_w": (4, 8, 1, 1), "scale": (8, 1, 1)}
    body = "h = Conv(x, a_w) r = Mul(h, scale) i = Conv(r, b_w) s = Mul(i, scale) y = Conv(s, c_w)"
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8, "b_w": 8}


def test_a_table_that_several_layers_add_does_not_tie_them() -> None:
    constants = {"a_w": (8, 3, 1, 1), "b_w": (8, 8, 1, 1), "c_w": (32, 8, 1, 1), "bias": (8, 6, 1)}
    body = "h = Conv(x, a_w) r = Add(h, bias) i = Conv(r, b_w) s = Add(i, bias) y = Conv(s, c_w)"
    assert open_groups(check_cut(graph(body, constants=constants))) == {"a_w": 8, "b_w": 8}
