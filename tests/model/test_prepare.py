"""The working copy computes what the model computes, with sizes in numbers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from generated import generated_model

from onnxprune.model.names import Names
from onnxprune.model.prepare import prepare
from onnxprune.prove import prove

SEQUENCE = "float[N,T,12] x"

TRACED = """
    s = Shape(x) n = Gather(s, i0) t = Gather(s, i1) un = Unsqueeze(n, zero) ut = Unsqueeze(t, zero)
    target = Concat<axis = 0>(un, ut, h, minus) r = Reshape(x, target)
    p = Transpose<perm = [0, 2, 1, 3]>(r) back = Concat<axis = 0>(un, ut, twelve)
    q = Transpose<perm = [0, 2, 1, 3]>(p) y = Reshape(q, back)
"""
TRACED_CONSTANTS = {
    "i0": np.array(0), "i1": np.array(1), "zero": [0], "h": [3], "minus": [-1], "twelve": [12],
}  # fmt: skip


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def check_same(model: ir.Model, *sizes: tuple[int, ...]) -> ir.Model:
    work, _ = prepare(model)
    check = prove(model, work, [{"x": size} for size in sizes], tolerance=0)
    assert check.passed, check.detail
    assert f"over {len(sizes)} random" in check.detail
    return work


@pytest.mark.parametrize("seed", range(6))
def test_generated_graphs(seed: int) -> None:
    check_same(ir.from_proto(generated_model(seed, 5)), (2, 3, 5, 5), (1, 3, 5, 5))


def test_traced_targets_become_numbers() -> None:
    work = check_same(graph(TRACED, inputs=SEQUENCE, constants=TRACED_CONSTANTS), (2, 5, 12), (3, 7, 12))
    assert "Concat" not in op_types(work)
    assert "Unsqueeze" not in op_types(work)


def test_a_target_that_spells_zeros_literally() -> None:
    """``allowzero`` says that 0 is a size; where no size is 0, the target is written all the same."""
    body = TRACED.replace("Reshape(", "Reshape<allowzero = 1>(")
    work = check_same(graph(body, inputs=SEQUENCE, constants=TRACED_CONSTANTS), (2, 5, 12), (3, 7, 12))
    assert "Concat" not in op_types(work)
    body = "s = Shape(x) n = Gather(s, zero) t = Concat<axis = 0>(n, zero) y = Reshape<allowzero = 1>(x, t)"
    constants = {"zero": [0]}
    empty = graph(body, inputs="float[N,T,0] x", outputs="y", constants=constants)
    (reshape,) = (node for node in prepare(empty)[0].graph if node.op_type == "Reshape")
    assert reshape.attributes.get_int("allowzero") == 1


def test_a_target_whose_sizes_were_split() -> None:
    """As ONNX Runtime's optimizer writes it: one Split instead of several Gathers."""
    body = """
        s = Shape(x) n, t, c = Split(s, ones) target = Concat<axis = 0>(n, t, h, minus)
        r = Reshape(x, target) y = Transpose<perm = [0, 2, 1, 3]>(r)
    """
    constants = {"ones": [1, 1, 1], "h": [3], "minus": [-1]}
    work = check_same(graph(body, inputs=SEQUENCE, constants=constants), (2, 5, 12), (3, 7, 12))
    assert op_types(work) == ["Reshape", "Transpose"]


def test_a_target_with_symbols_in_new_places_reads_them_from_the_input() -> None:
    body = """
        s = Shape(x) n = Gather(s, zero) t = Gather(s, one) target = Concat<axis = 0>(t, four, three, n)
        p = Transpose<perm = [1, 2, 0]>(x) y = Reshape(p, target)
    """
    constants = {"zero": [0], "one": [1], "four": [4], "three": [3]}
    work = check_same(graph(body, inputs=SEQUENCE, constants=constants), (2, 5, 12), (3, 7, 12))
    (reshape,) = (node for node in work.graph if node.op_type == "Reshape")
    numbers = reshape.inputs[1]
    assert numbers is not None
    assert numbers.is_initializer() or numbers.producer().op_type == "Where"  # type: ignore[union-attr]


@pytest.mark.parametrize("target", [[1, 1, 12], [1, 1, 1], [2, 1, 1, 1]])
def test_constant_expands(target: list[int]) -> None:
    model = graph("e = Expand(x, t) y = Relu(e)", inputs=SEQUENCE, constants={"t": target})
    check_same(model, (2, 5, 12), (1, 3, 12))


def test_computed_expands() -> None:
    """A token is repeated for the batch; the rest of the target is written as 1."""
    body = "s = Shape(x) n = Gather(s, zero) t = Concat<axis = 0>(n, one, d) e = Expand(k, t) y = Add(x, e)"
    constants = {"zero": [0], "one": [1], "d": [12], "k": (1, 1, 12)}
    work = check_same(graph(body, inputs=SEQUENCE, constants=constants), (2, 5, 12), (3, 7, 12))
    (expand,) = (node for node in work.graph if node.op_type == "Expand")
    where = expand.inputs[1].producer()  # type: ignore[union-attr]
    assert where is not None
    assert where.op_type == "Where"
    np.testing.assert_array_equal(where.inputs[1].const_value.numpy(), [1, 1, 1])  # type: ignore[union-attr]
    np.testing.assert_array_equal(where.inputs[0].const_value.numpy(), [False, True, True])  # type: ignore[union-attr]


def test_arithmetic_on_static_sizes_is_folded() -> None:
    body = """
        s = Shape(x) d = Gather(s, two) f = Cast<to = 1>(d) r = Sqrt(f) m = Div(x, r) y = Relu(m)
    """
    work = check_same(graph(body, inputs=SEQUENCE, constants={"two": np.array(2)}), (2, 5, 12), (3, 4, 12))
    assert op_types(work) == ["Div", "Relu"]


def test_arithmetic_on_symbolic_sizes_stays() -> None:
    body = "s = Shape(x) d = Gather(s, one) f = Cast<to = 1>(d) m = Div(x, f) y = Relu(m)"
    work = check_same(graph(body, inputs=SEQUENCE, constants={"one": np.array(1)}), (2, 5, 12), (3, 4, 12))
    assert "Shape" in op_types(work)


def test_a_batch_is_never_frozen_into_a_target() -> None:
    """Sizes found at a batch of 2 must not be written where the model says -1 or reads the batch."""
    body = "s = Shape(x) n = Gather(s, zero) t = Concat<axis = 0>(n, minus) f = Reshape(x, t) y = Relu(f)"
    model = graph(body, inputs="float[N,3,4] x", constants={"zero": [0], "minus": [-1]})
    check_same(model, (2, 3, 4), (7, 3, 4), (1, 3, 4))


def test_constant_nodes_and_identities_go() -> None:
    body = """
        c = Constant<value = float[3] {1.0, 2.0, 3.0}>() i = Identity(c) j = Identity(x) a = Add(j, i)
        y = Identity(a)
    """
    work = check_same(graph(body, inputs="float[N,3] x"), (2, 3))
    assert op_types(work) == ["Add"]
    assert [value.name for value in work.graph.outputs] == ["y"]


def test_empty_and_repeated_node_names_become_different() -> None:
    model = graph("a = Relu(x) b = Relu(a) y = Relu(b)", inputs="float[N,3] x")
    for node, name in zip(model.graph, ("same", "", "same"), strict=True):
        node.name = name
    work, _ = prepare(model)
    names = [node.name for node in work.graph]
    assert len(set(names)) == 3
    assert all(names)
    assert names[0] == "same"


def test_a_weight_that_is_an_output_is_kept_apart() -> None:
    model = graph(
        "y = MatMul(x, w)", inputs="float[N,4] x", outputs="y; float[4,3] w", constants={"w": (4, 3)}
    )
    work = check_same(model, (2, 4))
    assert [value.name for value in work.graph.outputs] == ["y", "w"]
    assert work.graph[0].inputs[1] is not work.graph.outputs[1]


def test_the_model_is_not_changed() -> None:
    model = graph(TRACED, inputs=SEQUENCE, constants=TRACED_CONSTANTS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    prepare(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_tensors_are_shared() -> None:
    model = graph("y = MatMul(x, w)", inputs="float[N,4] x", constants={"w": (4, 3)})
    work, _ = prepare(model)
    assert work.graph.initializers["w"].const_value is model.graph.initializers["w"].const_value


def test_fresh_names_avoid_all_others() -> None:
    model = graph("a = Relu(x) y = MatMul(a, w)", inputs="float[N,4] x", constants={"w": (4, 3)})
    names = Names(model.graph)
    assert [names.fresh(wanted) for wanted in ("a", "w", "x", "new", "new")] == [
        "a_2",
        "w_2",
        "x_2",
        "new",
        "new_2",
    ]
