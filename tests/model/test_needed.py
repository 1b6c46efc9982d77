"""What outputs need: bodies count as readers, and inputs stay."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxprune.model.needed import drop_unneeded, inner_nodes, owners

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, bool b, float[2] z) => (float[2] y)
    <float[2] used = {1, 2}, float[2] unused = {3, 4}> {
    h = Add(x, used) k = Mul(x, unused) l = Neg(k)
    y = If (b) <
        then_branch = one () => (float[2] t) { t = If (b) <
            then_branch = three () => (float[2] tt) { tt = Abs(h) },
            else_branch = four () => (float[2] te) { te = Neg(h) }> },
        else_branch = two () => (float[2] e) { e = Neg(x) }>
    }"""


def model() -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(TEXT))


def test_inner_nodes_belong_to_the_node_of_the_main_graph():
    graph = model().graph
    branch = list(graph)[-1]
    assert sorted(node.op_type for node in inner_nodes(branch)) == ["Abs", "If", "Neg", "Neg"]
    assert set(owners(graph).values()) == {branch}


def test_what_nobody_needs_goes():
    graph = model().graph
    drop_unneeded(graph)
    assert [node.op_type for node in graph] == ["Add", "If"]
    assert list(graph.initializers) == ["used"]
    assert [value.name for value in graph.inputs] == ["x", "b", "z"]


def test_what_a_body_captures_goes_with_it():
    graph = model().graph
    graph.outputs[0] = graph.inputs[0]
    drop_unneeded(graph)
    assert list(graph) == []
    assert list(graph.initializers) == []
