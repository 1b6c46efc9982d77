"""Parts of a graph: every node in exactly one, in an order, each named after what it begins with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from generated import generated_model
from quantized_models import integers
from small_models import attention, concat_net, depthwise_net, residual_net

from onnxprune.analyze import analyze
from onnxprune.model.nodes import reads_of
from onnxprune.parts import Part, split_into_parts

STEP = np.asarray(0.02, np.float32)
ZERO = np.asarray(0, np.int8)
ZERO_INDEX = np.asarray(0, np.int64)
WEIGHT = integers(8, 3)


def parts_of(model: ir.Model) -> tuple[Part, ...]:
    analysis = analyze(model)
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    check_partition(analysis.model.graph, parts)
    return parts


def check_partition(main: ir.Graph, parts: tuple[Part, ...]) -> None:
    """Each node in one part, in the order of the graph; each part reads of earlier ones alone."""
    held = [node for part in parts for node in part.nodes]
    assert len(held) == len(set(held))
    assert set(held) == set(main)
    assert len({part.name for part in parts}) == len(parts)
    place = {node: number for number, node in enumerate(main)}
    made = set(main.inputs)
    for part in parts:
        assert [place[node] for node in part.nodes] == sorted(place[node] for node in part.nodes)
        assert made >= set(part.inputs), "it reads what no earlier part makes"
        inside = {output for node in part.nodes for output in node.outputs}
        for node in part.nodes:
            assert all(v in inside or v in part.inputs or v.is_initializer() for v in reads_of(node))
        assert inside >= set(part.outputs)
        made |= set(part.outputs)
    assert made >= set(main.outputs)


def operators(parts: tuple[Part, ...]) -> list[list[str]]:
    return [[node.op_type for node in part.nodes] for part in parts]


def test_a_contraction_and_what_follows_it():
    parts = parts_of(ir.from_proto(residual_net()))
    assert operators(parts)[0] == ["Conv", "BatchNormalization", "Relu"]
    assert operators(parts)[2] == ["Conv", "BatchNormalization", "Add", "Relu"], "the sum joins what is later"
    assert len(parts[2].inputs) == 2
    assert operators(parts)[-1] == ["Gemm"]
    assert "Flatten" in operators(parts)[-2]


@pytest.mark.parametrize("model", [residual_net, depthwise_net, concat_net, attention])
def test_small_models(model):
    parts_of(ir.from_proto(model()))


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed):
    parts_of(ir.from_proto(generated_model(seed, depth=4)))


def test_what_puts_parts_side_by_side_is_a_part_of_its_own():
    parts = parts_of(ir.from_proto(concat_net()))
    assert ["Concat"] in operators(parts)


def test_a_constant_beside_one_part_is_none():
    parts = parts_of(
        graph(
            "h = MatMul(x, a_w) j = Concat<axis = 1>(h, k) r = Relu(j) y = MatMul(r, b_w)",
            inputs="float[4,6] x",
            constants={"a_w": (6, 8), "k": (4, 2), "b_w": (10, 3)},
        )
    )
    assert operators(parts) == [["MatMul", "Concat", "Relu"], ["MatMul"]]


def test_what_unpacks_numbers_belongs_to_its_reader():
    """A runtime fuses it with the contraction, which it can't if it is timed with what comes before."""
    parts = parts_of(
        graph(
            "h = MatMul(x, a_w) q = QuantizeLinear(h, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, b_w)",
            inputs="float[4,6] x",
            constants={"a_w": (6, 8), "s": STEP, "z": ZERO, "b_w": (8, 3)},
        )
    )
    assert operators(parts) == [["MatMul", "QuantizeLinear"], ["DequantizeLinear", "MatMul"]]
    assert parts[1].name == str(parts[1].nodes[1].name), "named after the contraction"


def test_what_reads_constants_alone_belongs_to_its_reader():
    parts = parts_of(
        graph(
            "h = MatMul(x, a_w) r = Relu(h) t = DequantizeLinear(b_q, s, z) y = MatMul(r, t)",
            inputs="float[4,6] x",
            constants={"a_w": (6, 8), "s": STEP, "z": ZERO, "b_q": WEIGHT},
        )
    )
    assert operators(parts) == [["MatMul", "Relu"], ["DequantizeLinear", "MatMul"]]


def test_sizes_belong_to_whoever_needs_them():
    parts = parts_of(
        graph(
            """h = MatMul(x, a_w) s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, first)
               t = Concat<axis = 0>(u, rest) g = MatMul(h, b_w) y = Reshape(g, t)""",
            inputs="float[N,M,6] x",
            constants={"a_w": (6, 8), "b_w": (8, 4), "zero": ZERO_INDEX, "first": [0], "rest": [-1, 2]},
        )
    )
    assert all("Reshape" in kinds for kinds in operators(parts) if "Shape" in kinds or "Concat" in kinds)


def test_bodies_stay_whole_and_nothing_joins_them():
    parts = parts_of(
        graph(
            """h = MatMul(x, a_w)
               q = If(flag) <then_branch = yes () => (float[N,8] o) { o = MatMul(h, b_w) },
                             else_branch = no () => (float[N,8] o) { o = Relu(h) }>
               r = Relu(q) y = MatMul(r, c_w)""",
            inputs="float[N,6] x, bool flag",
            constants={"a_w": (6, 8), "b_w": (8, 8), "c_w": (8, 3)},
        )
    )
    closed = [part for part in parts if part.whole is not None]
    assert operators(tuple(closed)) == [["If"]]
    assert "If" in str(closed[0].whole)
    assert "graph of its own" in str(closed[0].whole)
    assert {value.name for value in closed[0].inputs} == {"h", "flag"}, "what its bodies capture is read"
    assert ["Relu"] in operators(parts)


def test_outputs_of_the_graph_are_given_away():
    parts = parts_of(
        graph(
            "h = MatMul(x, a_w) r = Relu(h) y = MatMul(r, b_w)",
            inputs="float[4,6] x",
            outputs="h; y",
            constants={"a_w": (6, 8), "b_w": (8, 3)},
        )
    )
    assert [[value.name for value in part.outputs] for part in parts] == [["h", "r"], ["y"]]


def test_dead_nodes_are_run_too():
    parts = parts_of(
        graph(
            "h = MatMul(x, a_w) u = MatMul(x, b_w) y = Relu(h)",
            inputs="float[4,6] x",
            constants={"a_w": (6, 8), "b_w": (6, 8)},
        )
    )
    assert all(part.outputs for part in parts)
