"""What has become of layers: pruned, quantized in every form, renamed, or gone."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.layer_changes import NO_REASON, layer_changes
from onnxprune.record import LayerRecord, Skip

CONVS = ["stem_node", "block1.conv1_node", "block1.conv2_node", "block2.conv1_node", "block2.conv2_node"]


def as_ir(proto: onnx.ModelProto) -> ir.Model:
    return ir.serde.deserialize_model(proto)


def as_proto(model: ir.Model) -> onnx.ModelProto:
    return ir.serde.serialize_model(model)


def rows(
    before: onnx.ModelProto, after: onnx.ModelProto, skipped: tuple[Skip, ...] = ()
) -> dict[str, LayerRecord]:
    found = layer_changes(as_ir(before), as_ir(after), skipped)
    assert len({row.name for row in found}) == len(found)
    return {row.name: row for row in found}


def pruned(proto: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    return as_proto(onnxprune.prune(as_ir(proto), **{"amount": 0.5, "align": 1, **options}).model)


def renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same model as another exporter would name it: no node, value or weight keeps its name."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kept = {value.name for value in (*proto.graph.input, *proto.graph.output)} | {""}
    names: dict[str, str] = {}

    def name(old: str) -> str:
        return old if old in kept else names.setdefault(old, f"v{len(names)}")

    for number, node in enumerate(copy.graph.node):
        node.name = f"n{number}"
        node.input[:] = [name(value) for value in node.input]
        node.output[:] = [name(value) for value in node.output]
    for tensor in copy.graph.initializer:
        tensor.name = name(tensor.name)
    del copy.graph.value_info[:]
    return copy


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def replace_weights(proto: onnx.ModelProto, change) -> onnx.ModelProto:
    """Return a copy in which ``change`` gives nodes and tensors in place of each weight (rank 2 or more)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    nodes, tensors = [], []
    for name, array in arrays(proto).items():
        if array.ndim < 2 or array.dtype != np.float32:
            tensors.append(numpy_helper.from_array(array, name))
            continue
        more_nodes, more_tensors = change(name, array)
        nodes += more_nodes
        tensors += more_tensors
    written = [*nodes, *copy.graph.node]
    del copy.graph.node[:]
    del copy.graph.initializer[:]
    copy.graph.node.extend(written)
    copy.graph.initializer.extend(tensors)
    return copy


def rounded(array: np.ndarray, zero: int) -> tuple[np.ndarray, np.ndarray]:
    """Return integers around ``zero``, and the step for each row."""
    step = np.abs(array).reshape(len(array), -1).max(axis=1) / 127
    shaped = step.reshape(-1, *[1] * (array.ndim - 1))
    return np.rint(array / shaped).astype(np.int64) + zero, step.astype(np.float32)


def with_int8_weights(proto: onnx.ModelProto, dtype=np.int8, zero: int = 0) -> onnx.ModelProto:
    """Quantize all weights by rows, each behind a DequantizeLinear (QDQ)."""

    def change(name, array):
        numbers, step = rounded(array, zero)
        parts = {
            f"{name}_quantized": numbers.astype(dtype),
            f"{name}_scale": step,
            f"{name}_zero": np.full(len(step), zero, dtype),
        }
        node = helper.make_node("DequantizeLinear", list(parts), [name], f"{name}_dq", axis=0)
        return [node], [numpy_helper.from_array(part, key) for key, part in parts.items()]

    return replace_weights(proto, change)


def with_float16_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    def change(name, array):
        node = helper.make_node("Cast", [f"{name}_fp16"], [name], f"{name}_cast", to=TensorProto.FLOAT)
        return [node], [numpy_helper.from_array(array.astype(np.float16), f"{name}_fp16")]

    return replace_weights(proto, change)


# --- pruning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [small_models.residual_net, small_models.depthwise_net, small_models.concat_net, small_models.mlp]
)
def test_channels_that_went(make):
    before = make()
    result = onnxprune.prune(as_ir(before), amount=0.5, align=1)
    found = rows(before, as_proto(result.model))
    cost = {row["what"]: row for row in result.report.sections["cost"]}
    assert sum(row.macs for row in found.values()) == cost["MACs"]["before"]
    assert sum(row.macs_left for row in found.values()) == cost["MACs"]["after"]
    assert all(0 < row.width_left <= row.width for row in found.values())
    assert any(row.width_left < row.width for row in found.values())


def test_sizes_are_those_of_the_weights():
    before = small_models.residual_net()
    found = rows(before, pruned(before))
    assert [*found] == [*CONVS, "y_node"]
    stem, head = found["stem_node"], found["y_node"]
    assert (stem.op_type, stem.width, stem.width_left) == ("Conv", 16, 8)
    assert (stem.params, stem.params_left) == (16 * 3 * 9, 8 * 3 * 9)
    assert (stem.macs, stem.macs_left) == (16 * 3 * 9 * 64, 8 * 3 * 9 * 64)
    assert (head.op_type, head.width, head.width_left, head.params_left) == ("Gemm", 10, 10, 80)
    assert {row.bits for row in found.values()} == {32}


def test_a_transposed_convolution_in_groups_counts_all_its_outputs():
    weight = np.ones((8, 3, 2, 2), np.float32)
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", group=4, strides=[2, 2])]
    infos = [helper.make_tensor_value_info(name, 1, [1, None, None, None]) for name in ("x", "y")]
    infos[0].type.tensor_type.shape.CopyFrom(
        helper.make_tensor_value_info("x", 1, [1, 8, 5, 5]).type.tensor_type.shape
    )
    graph = helper.make_graph(nodes, "g", infos[:1], infos[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    row = rows(model, model)["up"]
    assert (row.width, row.params) == (12, 96)


def without_branch(proto: onnx.ModelProto, kept: str) -> onnx.ModelProto:
    return pruned(proto, pattern="layers", score="l2", protect=[kept])


@pytest.mark.parametrize(("kept", "expected"), [("block2", CONVS[1:3]), ("block1", CONVS[3:5])])
def test_branches_that_are_gone(kept, expected):
    before = small_models.residual_net()
    found = rows(before, without_branch(before, kept))
    gone = [name for name, row in found.items() if not row.width_left]
    assert gone == expected
    for name in gone:
        row = found[name]
        assert (row.params_left, row.macs_left, row.sparsity, row.reason) == (0, 0, 0.0, None)
    assert all(found[name].params_left == found[name].params for name in found if name not in gone)


def test_a_tied_weight_counts_for_each_layer():
    before = small_models.mlp()
    fc2 = next(node for node in before.graph.node if node.name == "fc2_node")
    extra = onnx.NodeProto()
    extra.CopyFrom(fc2)
    extra.name, extra.input[0], extra.output[0] = "again", "fc2_relu", "fc2_again"
    place = [node.name for node in before.graph.node].index("y_node")
    before.graph.node.insert(place, extra)
    before.graph.node[place + 1].input[0] = "fc2_again"
    found = rows(before, before)
    assert found["again"].params == found["fc2_node"].params == 32 * 32


# --- names --------------------------------------------------------------------------------------------------


def figures(row: LayerRecord) -> tuple[object, ...]:
    return row.width_left, row.params_left, row.macs_left, row.sparsity, row.bits


@pytest.mark.parametrize(
    "make", [small_models.residual_net, small_models.depthwise_net, small_models.attention, small_models.mlp]
)
def test_names_that_all_changed_are_matched_by_structure(make, monkeypatch):
    monkeypatch.setattr(
        "onnxprune.layer_changes._likeness", None
    )  # each has a partner, so no pairs are weighed
    before = make()
    after = pruned(before)
    expected, found = rows(before, after), rows(before, renamed(after))
    assert {name: figures(row) for name, row in found.items()} == {
        name: figures(row) for name, row in expected.items()
    }


@pytest.mark.parametrize("most_pairs", [0, 1 << 22])
def test_structure_tells_which_layer_is_gone(most_pairs, monkeypatch):
    """One of three layers is left out, under other names: the sizes of the others say which."""
    monkeypatch.setattr("onnxprune.layer_changes._MOST_PAIRS", most_pairs)
    before = small_models.depthwise_net()
    after = renamed(before)
    place = next(n for n, node in enumerate(before.graph.node) if node.name == "project_node")
    after.graph.node[place].op_type = "Identity"
    del after.graph.node[place].attribute[:]
    del after.graph.node[place].input[1:]
    found = rows(before, after)
    assert [name for name, row in found.items() if not row.width_left] == ["project_node"]


def test_a_name_that_another_layer_took_is_not_trusted():
    before = small_models.depthwise_net()
    after = onnx.ModelProto()
    after.CopyFrom(before)
    swapped = {"stem_node": "project_node", "project_node": "stem_node"}
    for node in after.graph.node:
        node.name = swapped.get(node.name, node.name)
    found = rows(before, after)
    assert all(row.width_left == row.width and row.params_left == row.params for row in found.values())


@pytest.mark.parametrize(("kept", "expected"), [("block2", CONVS[1:3]), ("block1", CONVS[3:5])])
def test_what_quantizers_put_behind_names_makes_no_other_names(kept, expected):
    """Both branches have the same sizes, so that structure alone could not tell which is gone."""
    before = small_models.residual_net()
    after = with_int8_weights(without_branch(before, kept))
    for node in after.graph.node:
        node.name += "_quant"
    found = rows(before, after)
    assert [name for name, row in found.items() if not row.width_left] == expected


# --- forms of weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 0), (np.uint8, 128)])
def test_weights_behind_a_dequantize(dtype, zero):
    before = small_models.residual_net()
    float_form = pruned(before)
    expected, found = rows(before, float_form), rows(before, with_int8_weights(float_form, dtype, zero))
    for name, row in found.items():
        assert row.bits == 8
        assert (row.width_left, row.params_left, row.macs_left) == figures(expected[name])[:3]
        assert row.sparsity < 0.05  # raw zeros would be none, or all that equal 0 and not the zero point


def test_zeros_that_masks_made_are_counted_behind_a_zero_point():
    before = small_models.residual_net()
    masked = pruned(before, pattern="unstructured", amount=0.75)
    found = rows(before, with_int8_weights(masked, np.uint8, 128))
    assert all(row.sparsity == pytest.approx(0.75, abs=0.06) for row in found.values())
    assert all(row.reason is None for row in found.values())


def test_operators_on_integers():
    """A convolution as QLinearConv, a product as MatMulInteger: their weights are inputs of their own."""
    before = small_models.mlp()
    after = onnx.ModelProto()
    after.CopyFrom(before)
    weight = arrays(before)["fc2.weight"]
    numbers, _ = rounded(weight, 0)
    place = next(n for n, node in enumerate(after.graph.node) if node.name == "fc2_node")
    (x, _, bias), (y,) = after.graph.node[place].input, after.graph.node[place].output
    chain = [
        helper.make_node("DynamicQuantizeLinear", [x], ["q", "qs", "qz"], "fc2_in"),
        helper.make_node("MatMulInteger", ["q", "fc2.weight_quantized", "qz"], ["sum"], "fc2_node_quant"),
        helper.make_node("Cast", ["sum"], ["sum_f"], "fc2_cast", to=TensorProto.FLOAT),
        helper.make_node("Add", ["sum_f", bias], [y], "fc2_bias"),
    ]
    nodes = [*after.graph.node]
    nodes[place : place + 1] = chain
    del after.graph.node[:]
    after.graph.node.extend(nodes)
    after.graph.initializer.append(
        numpy_helper.from_array(numbers.T.astype(np.int8).copy(), "fc2.weight_quantized")
    )
    row = rows(before, after)["fc2_node"]
    assert (row.op_type, row.width_left, row.params_left, row.bits) == ("Gemm", 32, 1024, 8)
    assert row.macs_left == row.macs


def test_packed_weights_of_four_bits():
    before = small_models.attention()
    after = onnx.ModelProto()
    after.CopyFrom(before)
    packed = np.full((64, 1, 16), 0x99, np.uint8)  # 9 - 8 = 1 everywhere
    packed[:16] = 0x88  # 8 is zero
    for number, node in enumerate(after.graph.node):
        if node.name == "up_product_node":
            after.graph.node[number].CopyFrom(
                helper.make_node(
                    "MatMulNBits", [node.input[0], "B", "S"], [*node.output], "up_product_node_Q4",
                    domain="com.microsoft", K=32, N=64, bits=4, block_size=32,
                )
            )  # fmt: skip
    after.graph.initializer.append(numpy_helper.from_array(packed, "B"))
    after.graph.initializer.append(numpy_helper.from_array(np.ones((64, 1), np.float32), "S"))
    after.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    row = rows(before, after)["up_product_node"]
    assert (row.width_left, row.params_left, row.bits) == (64, 64 * 32, 4)
    assert row.sparsity == 0.25
    assert row.macs_left == row.macs


def test_half_precision():
    before = small_models.mlp()
    found = rows(before, with_float16_weights(before))
    assert {row.bits for row in found.values()} == {16}
    assert {row.reason for row in found.values()} == {NO_REASON}


# --- reasons ------------------------------------------------------------------------------------------------


def reasons(skipped: dict[str, str], after: onnx.ModelProto | None = None) -> dict[str, str | None]:
    before = small_models.residual_net()
    entries = tuple(Skip(name=name, reason=reason) for name, reason in skipped.items())
    return {name: row.reason for name, row in rows(before, after or before, entries).items()}


@pytest.mark.parametrize("name", ["stem_node", "stem.weight", "stem"])
def test_a_reason_finds_its_layer_by_node_weight_or_value(name):
    found = reasons({name: "because"})
    assert found["stem_node"] == "because"
    assert found["block1.conv1_node"] == NO_REASON


def test_the_reason_of_a_group_is_that_of_all_its_layers():
    group = next(g for g in onnxprune.find_groups(as_ir(small_models.residual_net())) if g.name == "stem")
    assert {member.tensor for member in group.members} >= {"stem.weight", "block2.conv2.weight"}
    found = reasons({"stem": "coupled"})
    assert [name for name, reason in found.items() if reason == "coupled"] == [CONVS[0], CONVS[2], CONVS[4]]


def test_the_reason_of_a_branch_is_that_of_its_layers():
    found = reasons({"block1": "it matters"})
    told = [name for name, reason in found.items() if reason == "it matters"]
    assert told == ["block1.conv1_node", "block1.conv2_node"]


def test_several_reasons_are_told_once_each():
    found = reasons({"stem.weight": "one", "stem_node": "two", "nowhere": "lost"})
    assert found["stem_node"] == "one; two"
    assert reasons({"stem.weight": "one", "stem_node": "one"})["stem_node"] == "one"
    assert "lost" not in str(found)


def test_what_lost_channels_has_no_reason_to_be_left_alone():
    before = small_models.residual_net()
    found = reasons({"stem": "because", "fc.weight": "it is the output"}, pruned(before))
    assert found["stem_node"] is None
    assert found["y_node"] == "it is the output"  # its inputs are fewer, its outputs are all there


def test_of_many_reasons_some_are_told_and_that_there_are_others():
    before = small_models.mlp()
    skipped = [Skip(name="fc2_node", reason=f"reason {number}") for number in range(20)]
    told = layer_changes(as_ir(before), as_ir(before), skipped)[1].reason
    assert told == "; ".join([*(f"reason {number}" for number in range(8)), "and others"])
