"""Two models side by side: which samples are run, where runs begin, and what is remembered in between."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import graph
from repairing import samples_for
from small_models import attention, residual_net

from onnxprune.calibration import layerwise
from onnxprune.calibration.layerwise import Portion, Side, Tap, portions_of, settled_values
from onnxprune.data import Dataset
from onnxprune.errors import DataError

DEEP = "a = MatMul(x, a_w) b = Relu(a) c = MatMul(b, c_w) d = Relu(c) s = Add(d, b) y = MatMul(s, y_w)"
WEIGHTS: dict[str, Any] = {"a_w": (6, 6), "c_w": (6, 6), "y_w": (6, 6)}


def deep() -> ir.Model:
    return graph(DEEP, constants=WEIGHTS, inputs="float[N,6] x")


def side(model: ir.Model, data: Dataset, limit_bytes: int = 1 << 20, batch: int = 8) -> Side:
    portions = portions_of(model, data, batch, 0)
    return Side(model, data, portions, threads=1, limit_bytes=limit_bytes)


def values(model: ir.Model, data: Dataset, names: list[str], limit_bytes: int = 0) -> dict[str, np.ndarray]:
    """Return values of all samples, portion after portion, computed from the inputs."""
    found = list(side(model, data, limit_bytes).run([Tap(name) for name in names]))
    return {name: np.concatenate([one[Tap(name)] for one in found]) for name in names}


# --- which samples ------------------------------------------------------------------------------------------


def test_a_fifth_is_held_out_and_nothing_is_run_twice() -> None:
    model = deep()
    portions = portions_of(model, samples_for(model, 50), 16, seed=3)
    held = np.concatenate([p.samples for p in portions if p.held_out])
    fit = np.concatenate([p.samples for p in portions if not p.held_out])
    assert len(held) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate([held, fit])), np.arange(50))
    assert max(len(p.samples) for p in portions) == 16
    again = portions_of(model, samples_for(model, 50), 16, seed=3)
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(portions, again, strict=True))
    others = portions_of(model, samples_for(model, 50), 16, seed=4)
    assert not all(np.array_equal(a.samples, b.samples) for a, b in zip(portions, others, strict=True))


def test_two_samples_are_enough_and_one_is_not() -> None:
    model = deep()
    assert [len(p.samples) for p in portions_of(model, samples_for(model, 2), 8, 0)] == [1, 1]
    with pytest.raises(DataError, match=r"data: too few samples \(1\) to repair with"):
        portions_of(model, samples_for(model, 1), 8, 0)


def test_a_fixed_batch_is_always_whole() -> None:
    model = graph("y = MatMul(x, w)", constants={"w": (6, 2)}, inputs="float[4,6] x")
    portions = portions_of(model, samples_for(model, 31), 32, 0)
    assert {len(p.samples) for p in portions} == {4}
    assert sum(p.held_out for p in portions) == 1
    assert len(portions) == 7


def test_data_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DataError, match="shape"):
        portions_of(deep(), Dataset.from_arrays({"x": np.zeros((4, 7), np.float32)}), 8, 0)


# --- what is settled ----------------------------------------------------------------------------------------


def test_settled_values_are_all_that_the_rest_is_computed_from() -> None:
    model = deep()
    assert settled_values(model.graph, {"n0", "n2", "n5"}) == []
    assert settled_values(model.graph, {"n2", "n5"}) == ["b"]
    assert settled_values(model.graph, {"n5"}) == ["s"]
    assert settled_values(model.graph, set()) == ["y"]


def test_a_value_that_only_a_body_reads_is_settled_too() -> None:
    body = """
        b = Relu(x) m = ReduceMax<keepdims = 0>(x) zero = Constant<value_float = 0.0>() c = Greater(m, zero)
        a = MatMul(x, w)
        y = If(c) <
            then_branch = then () => (float[N,6] t) { t = Add(a, b) },
            else_branch = other () => (float[N,6] e) { e = Sub(a, b) }
        >
    """
    model = graph(body, constants={"w": (6, 6)}, inputs="float[N,6] x")
    changing = {str(node.name) for node in model.graph if node.op_type == "MatMul"}
    assert set(settled_values(model.graph, changing) or ()) == {"b", "c"}
    data = samples_for(model, 20)
    walked = side(model, data)
    expected = values(model, data, ["y", "b"])
    for _ in walked.advance([Tap("b")], settled_values(model.graph, changing) or ()):
        pass
    found = np.concatenate([one[Tap("y")] for one in walked.run([Tap("y")])])
    np.testing.assert_allclose(found, expected["y"], rtol=1e-6)


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_bytes", [0, 1 << 20])
def test_a_walk_sees_what_a_run_from_the_inputs_sees(limit_bytes: int) -> None:
    model, data = deep(), samples_for(deep(), 30)
    expected = values(model, data, ["a", "c", "s", "y"])
    walked = side(model, data, limit_bytes)
    for changing, names in (({"n0", "n2", "n5"}, ["a"]), ({"n2", "n5"}, ["c"]), ({"n5"}, ["s", "y"])):
        settled = settled_values(model.graph, changing)
        assert settled is not None
        found = list(walked.advance([Tap(name) for name in names], settled))
        for name in names:
            both = np.concatenate([one[Tap(name)] for one in found])
            np.testing.assert_allclose(both, expected[name], rtol=1e-6, atol=1e-6)


def test_later_runs_begin_at_settled_values_and_see_changes_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, data = deep(), samples_for(deep(), 30)
    opened: list[ir.Model] = []
    open_session = layerwise.open_session

    def watched(part: ir.Model, **options: Any) -> Any:
        opened.append(part)
        return open_session(part, **options)

    monkeypatch.setattr(layerwise, "open_session", watched)
    walked = side(model, data)
    list(walked.advance([Tap("c")], ["b"]))
    weight = model.graph.initializers["y_w"]
    weight.const_value = ir.tensor(np.eye(6, dtype=np.float32), name="y_w")
    found = np.concatenate([one[Tap("y")] for one in walked.run([Tap("y")])])
    first, second = ([node.op_type for node in part.graph] for part in opened)
    assert first.count("MatMul") == 2
    assert second.count("MatMul") == 2  # that of c and that of y; the one of a is not run again
    assert [value.name for value in opened[1].graph.inputs] == ["b"]
    np.testing.assert_allclose(found, values(model, data, ["y"])["y"], rtol=1e-6)


def test_what_does_not_fit_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = deep(), samples_for(deep(), 30)
    walked = side(model, data, limit_bytes=30 * 6 * 4 - 1)
    opened: list[ir.Model] = []
    open_session = layerwise.open_session
    monkeypatch.setattr(
        layerwise,
        "open_session",
        lambda part, **options: opened.append(part) or open_session(part, **options),
    )
    list(walked.advance([Tap("c")], ["b"]))
    list(walked.run([Tap("y")]))
    assert [value.name for value in opened[1].graph.inputs] == ["x"]
    enough = side(model, data, limit_bytes=30 * 6 * 4)
    list(enough.advance([Tap("c")], ["b"]))
    list(enough.run([Tap("y")]))
    assert [value.name for value in opened[3].graph.inputs] == ["b"]


def test_what_is_remembered_can_be_asked_for_and_its_shape() -> None:
    model, data = deep(), samples_for(deep(), 30)
    walked = side(model, data)
    list(walked.advance([Tap("c")], ["b"]))
    found = list(walked.run([Tap("b"), Tap("b", "Shape"), Tap("c", "Shape")]))
    np.testing.assert_allclose(
        np.concatenate([one[Tap("b")] for one in found]), values(model, data, ["b"])["b"], rtol=1e-6
    )
    assert [tuple(one[Tap("b", "Shape")]) for one in found] == [one[Tap("b")].shape for one in found]
    assert [tuple(one[Tap("c", "Shape")]) for one in found] == [one[Tap("b")].shape for one in found]


def test_a_part_holds_what_leads_to_its_taps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = deep(), samples_for(deep(), 30)
    opened: list[ir.Model] = []
    open_session = layerwise.open_session
    monkeypatch.setattr(
        layerwise,
        "open_session",
        lambda part, **options: opened.append(part) or open_session(part, **options),
    )
    walked = side(model, data)
    list(walked.advance([Tap("b")], ["b"]))
    list(walked.run([Tap("c")]))
    assert [[node.op_type for node in part.graph] for part in opened] == [
        ["MatMul", "Relu", "Identity"],
        ["MatMul", "Identity"],
    ]
    assert [list(part.graph.initializers) for part in opened] == [["a_w"], ["c_w"]]
    assert [node.op_type for node in model.graph] == ["MatMul", "Relu", "MatMul", "Relu", "Add", "MatMul"]


def test_a_node_with_one_remembered_output_is_run_again_for_the_other() -> None:
    body = "a = MatMul(x, w) l, r = Split<axis = 1>(a) u = Relu(l) s = Add(u, r) y = Relu(s)"
    model = graph(body, constants={"w": (6, 6)}, inputs="float[N,6] x")
    data = samples_for(model, 20)
    walked = side(model, data)
    list(walked.advance([Tap("u")], ["l", "a"]))
    found = list(walked.run([Tap("y"), Tap("l")]))
    for name, expected in values(model, data, ["y", "l"]).items():
        both = np.concatenate([one[Tap(name)] for one in found])
        np.testing.assert_allclose(both, expected, rtol=1e-6)


def test_stored_values_that_are_inputs_too_stay_both() -> None:
    model, data = deep(), samples_for(deep(), 30)
    expected = values(model, data, ["y"])["y"]
    model.graph.inputs.extend(model.graph.initializers.values())
    model.ir_version = 3
    np.testing.assert_allclose(values(model, data, ["y"])["y"], expected, rtol=1e-6)


def test_functions_travel_with_a_part() -> None:
    text = """
        <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
        g (float[N,6] x) => (float[N,6] y) { a = own.twice(x) b = Relu(a) y = own.twice(b) }
        <opset_import: ["" : 17], domain: "own"> twice (p) => (q) { q = Add(p, p) }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    data = samples_for(model, 20)
    walked = side(model, data)
    list(walked.advance([Tap("a")], ["b"]))
    found = np.concatenate([one[Tap("y")] for one in walked.run([Tap("y")])])
    np.testing.assert_allclose(found, values(model, data, ["y"])["y"], rtol=1e-6)
    assert found.min() == 0
    assert found.max() > 0


def test_some_portions_alone() -> None:
    model, data = deep(), samples_for(deep(), 30)
    walked = side(model, data)
    held = [number for number, portion in enumerate(walked.portions) if portion.held_out]
    (found,) = walked.run_on([Tap("y")], held)
    portion: Portion = walked.portions[held[0]]
    expected = Side(model, data, [portion], threads=1, limit_bytes=0).run([Tap("y")])
    np.testing.assert_allclose(found[Tap("y")], next(iter(expected))[Tap("y")], rtol=1e-6)


@pytest.mark.parametrize("build", [residual_net, attention])
def test_whole_models_are_walked_node_by_node(build: Any) -> None:
    model = ir.from_proto(build())
    data = samples_for(model, 20)
    output = str(model.graph.outputs[0].name)
    expected = values(model, data, [output])[output]
    walked = side(model, data)
    nodes = [str(node.name) for node in model.graph]
    for place in range(len(nodes)):
        settled = settled_values(model.graph, set(nodes[place:]))
        assert settled is not None
        name = str(next(node for node in model.graph if node.name == nodes[place]).outputs[0].name)
        list(walked.advance([Tap(name)], settled))
    found = np.concatenate([one[Tap(output)] for one in walked.run([Tap(output)])])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
