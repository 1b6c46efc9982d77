"""Walks over a graph and its bodies, and the collector that waits meanwhile."""

from __future__ import annotations

import gc

import pytest
from cutting import graph

from onnxprune.model.collector import collector_paused
from onnxprune.model.nodes import graphs_in, nodes_in, reads_of

NESTED = """
    q = If(c) <then_branch = t () => (float a) {
                   a = If(c) <then_branch = tt () => (float b) { b = Relu(x) },
                              else_branch = te () => (float d) { e = Neg(x) d = Exp(e) }> },
               else_branch = f () => (float g) { g = Tanh(x) }>
    y = Neg(q)
"""


def test_nodes_come_in_the_order_of_onnx_ir() -> None:
    model = graph(NESTED, inputs="float[N,3] x, bool c", outputs="y")
    nodes = list(nodes_in(model.graph))
    assert nodes == list(model.graph.all_nodes())
    assert [node.op_type for node in nodes] == ["If", "If", "Relu", "Neg", "Exp", "Tanh", "Neg"]


def test_a_node_says_which_graphs_it_has() -> None:
    model = graph(NESTED, inputs="float[N,3] x, bool c", outputs="y")
    outer, last = list(model.graph)
    assert [body.name for body in graphs_in(outer)] == ["t", "f"]
    assert graphs_in(last) == ()


def test_the_graph_may_change_during_a_walk() -> None:
    model = graph("a = Identity(x) y = Neg(a)", inputs="float[N,3] x", outputs="y")
    for node in nodes_in(model.graph):
        if node.op_type == "Identity":
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
    assert [node.op_type for node in model.graph] == ["Neg"]


@pytest.mark.parametrize("on", [True, False])
def test_the_collector_is_afterwards_as_it_was(on: bool) -> None:
    was_on = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with collector_paused(), collector_paused():
            assert not gc.isenabled()
        assert gc.isenabled() is on
        with pytest.raises(KeyError), collector_paused():
            raise KeyError
        assert gc.isenabled() is on
    finally:
        (gc.enable if was_on else gc.disable)()


def test_a_node_reads_what_its_bodies_capture() -> None:
    body = """
        q = If(c) <then_branch = t () => (float a) {
                       k = Neg(outer)
                       a = If(c) <then_branch = tt () => (float b) { b = Add(k, deep) },
                                  else_branch = te () => (float d) { d = Identity(x) }> },
                   else_branch = f () => (float g) { g = Tanh(x) }>
        y = Neg(q)
    """
    before = "outer = Exp(x) deep = Sin(x)"
    model = graph(before + body, inputs="float[N,3] x, bool c", outputs="y")
    *_, held, last = list(model.graph)
    assert sorted(str(value.name) for value in reads_of(held)) == ["c", "deep", "outer", "x"]
    assert [value.name for value in reads_of(last)] == ["q"]
