"""Two models of one graph: every part is found again, and whatever differs is named."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph_proto
from generated import generated_model
from onnx import helper, numpy_helper
from renaming import renamed

from onnxprune.errors import PlanError
from onnxprune.model.outline import outline_of
from onnxprune.model.prepare import written_out
from onnxprune.outlines import Outline
from onnxprune.plans.matching import Matching, match


def outline(model: ir.Model | onnx.ModelProto) -> Outline:
    return outline_of(written_out(model if isinstance(model, ir.Model) else ir.from_proto(model)).graph)


def net(seed: int = 0) -> onnx.ModelProto:
    return small_models.residual_net(seed)


# --- what is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(8))
def test_everything_is_found_under_other_names_in_another_order(seed: int) -> None:
    model = ir.from_proto(generated_model(seed, 5))
    before, after = outline(model), outline(renamed(model, seed, interface=bool(seed % 2)))
    found = match(before, after)
    assert found.nodes.keys() == {node.name for node in before.nodes}
    assert set(found.nodes.values()) == {node.name for node in after.nodes}
    operators = {node.name: node.operator for node in after.nodes}
    assert all(operators[found.nodes[node.name]] == node.operator for node in before.nodes)
    assert found.tensors.keys() == before.tensors.keys()
    # the numbers are the same wherever they are found, which no other pairing of equal shapes would give
    numbers = [
        {name: value.const_value.numpy() for name, value in written_out(m).graph.initializers.items()}  # type: ignore[union-attr]
        for m in (model, renamed(model, seed, interface=bool(seed % 2)))
    ]
    for old, (new,) in found.tensors.items():
        np.testing.assert_array_equal(numbers[0][old], numbers[1][new])
    assert found.renamed == len(found.nodes) + len(found.tensors)


def test_the_same_names_are_no_other_names() -> None:
    assert match(outline(net()), outline(net(1))).renamed == 0


def test_documentation_metadata_and_opset_play_no_part() -> None:
    other = net()
    other.doc_string, other.producer_name, other.graph.name = "text", "another exporter", "main_graph"
    for node in other.graph.node:
        node.doc_string = "by another version"
        node.metadata_props.add(key="namespace", value="there")
    other.opset_import[0].version = 18
    assert outline(other) == outline(net())


def test_parts_that_are_alike_are_told_apart_by_what_reads_them() -> None:
    """Two branches of one structure whose names changed places: what computes what counts, not the names."""

    def twins(left: str, right: str) -> onnx.ModelProto:
        body = f"""
            a = Conv(x, {left}_w) ra = Relu(a) b = Conv(x, {right}_w) rb = Relu(b)
            y = Concat <axis = 1> (ra, rb)
        """
        shape = (4, 3, 1, 1)
        return graph_proto(body, constants={f"{left}_w": shape, f"{right}_w": shape})

    found = match(outline(twins("one", "two")), outline(twins("two", "one")))
    assert found.tensors == {"one_w": ("two_w",), "two_w": ("one_w",)}


def test_a_tensor_that_two_nodes_shared_may_be_stored_twice_and_the_other_way_round() -> None:
    """Exporters store equal tensors once; those that training moved apart are two."""
    body = "a = Mul(x, {0}) b = Sigmoid(a) y = Mul(b, {1})"
    once = graph_proto(body.format("s", "s"), inputs="float[N,8] x", constants={"s": (8,)})
    twice = graph_proto(body.format("s1", "s2"), inputs="float[N,8] x", constants={"s1": (8,), "s2": (8,)})
    found = match(outline(once), outline(twice))
    assert {name: set(names) for name, names in found.tensors.items()} == {"s": {"s1", "s2"}}
    readers = {node.operator + node.outputs[0]: node.name for node in outline(once).nodes}  # type: ignore[operator]
    assert found.read[readers["Mula"], "s"] == "s1"
    assert match(outline(twice), outline(once)).tensors == {"s1": ("s",), "s2": ("s",)}


def test_inputs_are_found_by_name_before_place() -> None:
    body = "m = MatMul(p, w) y = Sub(m, q)"
    weights = {"w": (8, 8)}
    first = graph_proto(body, inputs="float[N,8] p, float[N,8] q", constants=weights)
    swapped = graph_proto(body, inputs="float[N,8] q, float[N,8] p", constants=weights)
    assert match(outline(first), outline(swapped)).values["p"] == "p"
    other = graph_proto(
        "m = MatMul(u, w) y = Sub(m, v)", inputs="float[N,8] u, float[N,8] v", constants=weights
    )
    assert match(outline(first), outline(other)).values["q"] == "v"


# --- operands that may change places ------------------------------------------------------------------------

_SUM = "a = Conv(x, a_w) r = Relu(a) b = Conv(x, b_w) y = {}"


def _sum(last: str, body: str = _SUM) -> Outline:
    return outline(graph_proto(body.format(last), constants={"a_w": (4, 3, 1, 1), "b_w": (4, 3, 1, 1)}))


def test_operands_of_a_sum_may_change_places() -> None:
    found = match(_sum("Add(r, b)"), _sum("Add(b, r)"))
    assert found.tensors == {"a_w": ("a_w",), "b_w": ("b_w",)}


def test_operands_of_a_difference_may_not() -> None:
    with pytest.raises(PlanError, match=r"input 0 of Sub .* is Conv .*, but Relu .* in the model"):
        match(_sum("Sub(r, b)"), _sum("Sub(b, r)"))


def test_names_that_change_places_between_parts_that_are_alike_are_refused() -> None:
    """Did the operands or the names change places? Both look the same, and channels depend on it."""
    alike = "a = Conv(x, a_w) b = Conv(x, b_w) y = {}"
    with pytest.raises(PlanError, match=r"Add .* reads parts that are alike, under names that changed"):
        match(_sum("Add(a, b)", alike), _sum("Add(b, a)", alike))


# --- other sizes --------------------------------------------------------------------------------------------


def classifier(classes: int, batch: str = "N") -> onnx.ModelProto:
    return graph_proto(
        "c = Conv(x, c_w) p = GlobalAveragePool(c) f = Reshape(p, size) y = MatMul(f, out_w)",
        inputs=f"float[{batch},3,6,6] x",
        constants={
            "c_w": (8, 3, 3, 3),
            "size": [int(batch) if batch.isdigit() else -1, 8],
            "out_w": (8, classes),
        },
    )


def test_other_classes_are_told() -> None:
    found = match(outline(classifier(10)), outline(classifier(12)))
    assert found.other_sizes["out_w"] == "has shape [8, 12], not [8, 10]"
    assert found.other_sizes.keys() == {"out_w", "y"}


def test_another_batch_may_stand_in_targets_of_reshape() -> None:
    found = match(outline(classifier(10, "4")), outline(classifier(10, "1")))
    assert found.other_sizes["x"] == "has shape [1, 3, 6, 6], not [4, 3, 6, 6]"
    assert found.other_sizes.keys() == {"x", "y"}


def test_another_name_of_the_batch_is_the_same_graph() -> None:
    assert match(outline(classifier(10, "N")), outline(classifier(10, "batch"))).other_sizes == {}


def test_a_batch_that_became_fixed_is_refused_with_what_to_do() -> None:
    with pytest.raises(PlanError, match=r"export it with the same inputs \('x' has shape \[4, 3, 6, 6\], n"):
        match(outline(classifier(10, "N")), outline(classifier(10, "4")))


# --- sabotage -----------------------------------------------------------------------------------------------


def _nodes(model: onnx.ModelProto, operator: str) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == operator]


def _attribute(model: onnx.ModelProto) -> None:
    node = _nodes(model, "Conv")[1]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    node.attribute.append(helper.make_attribute("dilations", [1, 1]))


def _edge(model: onnx.ModelProto) -> None:
    first, second = _nodes(model, "Add")
    second.input[1] = first.input[1]


def _operator(model: onnx.ModelProto) -> None:
    _nodes(model, "Relu")[1].op_type = "Sigmoid"


def _inserted(model: onnx.ModelProto) -> None:
    relu = _nodes(model, "Relu")[2]
    model.graph.node.insert(
        list(model.graph.node).index(relu), helper.make_node("Relu", [relu.input[0]], ["more"], "more_node")
    )
    relu.input[0] = "more"


def _left_out(model: onnx.ModelProto) -> None:
    relu = _nodes(model, "Relu")[1]
    reader = next(node for node in model.graph.node if relu.output[0] in node.input)
    reader.input[0] = relu.input[0]
    model.graph.node.remove(relu)


def _bias(model: onnx.ModelProto) -> None:
    del _nodes(model, "Conv")[3].input[2]


def _rank(model: onnx.ModelProto) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == "fc.bias")
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values.reshape(1, -1), "fc.bias"))


def _type(model: onnx.ModelProto) -> None:
    for place, tensor in enumerate(model.graph.initializer):
        double = numpy_helper.to_array(tensor).astype(np.float64)
        model.graph.initializer[place].CopyFrom(numpy_helper.from_array(double, tensor.name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_attribute, r"Conv 'X' has .*not given"),
        (_edge, r"input 1 of Add 'X' is Relu 'X', but Relu 'X'"),
        (_operator, r"input 0 of Conv 'X' is Sigmoid 'X', but Relu 'X'"),
        (_inserted, r"input 0 of Relu 'X' is Relu 'X', but Add 'X'"),
        (_left_out, r"input 0 of Conv 'X' is BatchNormalization 'X', but Relu 'X'"),
        (_bias, r"Conv 'X' has 2 inputs, but 3"),
        (_rank, r"input 2 of Gemm 'X', 'X', is float \[1, 10\], but float \[10\]"),
        (_type, r"is double .*, but float"),
    ],
)
@pytest.mark.parametrize("names", [False, True])
def test_every_difference_is_named(
    change: Callable[[onnx.ModelProto], None], words: str, names: bool
) -> None:
    other = net()
    change(other)
    model = ir.from_proto(other)
    with pytest.raises(PlanError) as raised:
        match(outline(net()), outline(renamed(model) if names else model))
    message = str(raised.value)
    assert message.startswith("the plan is for another graph: ")
    assert message.endswith("in the model of the plan; prune anew instead")
    assert "\n" not in message
    assert re.search(words.replace("'X'", "'[^']+'"), message), message


def test_axes_are_no_sizes() -> None:
    """Numbers that grew like the batch are sizes only where sizes are read."""

    def sliced(batch: int) -> Outline:
        body = "y = Slice(x, starts, ends, axes, steps)"
        constants = {"starts": [0], "ends": [batch], "axes": [1], "steps": [1]}
        return outline(graph_proto(body, inputs=f"float[{batch},8] x", constants=constants))

    with pytest.raises(PlanError, match=r"input 2 of Slice .*, 'ends', holds \[2\], but \[4\]"):
        match(sliced(4), sliced(2))


def test_other_inputs_and_outputs_are_named() -> None:
    two = graph_proto("y = Add(x, z)", inputs="float[N,8] x, float[N,8] z")
    one = graph_proto("y = Add(x, x)", inputs="float[N,8] x")
    with pytest.raises(PlanError, match="it has 1 inputs, but 2"):
        match(outline(two), outline(one))
    other = graph_proto("y = Add(x, x)", inputs="double[N,8] x")
    with pytest.raises(PlanError, match=r"input 'x' is .*DOUBLE.*, but .*FLOAT"):
        match(outline(one), outline(other))


def test_nothing_matches_nothing() -> None:
    empty: dict[str, str] = {}
    assert Matching(empty, empty, {}).renamed == 0


def test_what_a_plan_calls_an_operator_can_not_act_on_a_terminal() -> None:
    of_stranger = net()
    _nodes(of_stranger, "Relu")[1].op_type = "a\x1b[31mb"
    with pytest.raises(PlanError, match=re.escape(r"but a\x1b[31mb '")):
        match(outline(of_stranger), outline(net()))
