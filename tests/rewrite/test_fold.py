"""Constants that go are folded forward: the cut model computes what the model computed."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cutting import Constant, graph_proto, proved_cut, trial_shapes
from masking import cleaned, masked, removed

import onnxprune
from onnxprune.analyze import Analysis, analyze
from onnxprune.errors import NothingToPrune
from onnxprune.ops.sums import Sums
from onnxprune.prove import prove
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.fold import apply_folds, exact_positions, plan_folds
from onnxprune.rewrite.twin import make_twin

DEAD = [1, 3, 4]
A: dict[str, Constant] = {"a_w": (6, 3, 3, 3), "a_b": (6,)}
POOLED = "p = GlobalAveragePool(r) f = Flatten(p)"
FIRST = "h = Conv(x, a_w, a_b) r = Sigmoid(h)"


def model(body: str, constants: dict[str, Constant], **options: object) -> onnx.ModelProto:
    return masked(graph_proto(body, constants={**A, **constants}, **options), {"a_w": DEAD})  # type: ignore[arg-type]


def weights(result: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in result.graph.initializers.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Conv(r, b_w, b_b)", {"b_w": (4, 6, 3, 3), "b_b": (4,)}),
        ("y = Conv(r, b_w)", {"b_w": (4, 6, 3, 3)}),
        ("y = Conv<strides = [2, 2], dilations = [2, 2]>(r, b_w)", {"b_w": (4, 6, 2, 2)}),
        ("y = Conv<group = 2>(r, b_w)", {"b_w": (4, 3, 1, 1)}),
        ("d = Conv<group = 6>(r, d_w, d_b) y = Conv(d, b_w)",
         {"d_w": (6, 1, 3, 3), "d_b": (6,), "b_w": (4, 6, 1, 1)}),
        (POOLED + " y = Gemm<transB = 1>(f, b_w, b_b)", {"b_w": (4, 6), "b_b": (4,)}),
        (POOLED + " y = Gemm<alpha = 2.0, beta = 0.5>(f, b_w, b_b)",
         {"b_w": (6, 4), "b_b": (1, 4)}),
        (POOLED + " y = Gemm<alpha = 2.0>(f, b_w)", {"b_w": (6, 4)}),
        (POOLED + " y = Gemm<beta = 0.0>(f, b_w, b_b)", {"b_w": (6, 4), "b_b": (4,)}),
        (POOLED + " y = MatMul(f, b_w)", {"b_w": (6, 4)}),
        (POOLED + " m = MatMul(f, b_w) y = Add(b_b, m)", {"b_w": (6, 4), "b_b": (4,)}),
        ("t = Transpose<perm = [0, 2, 3, 1]>(r) m = MatMul(t, b_w) y = Add(m, b_b)",
         {"b_w": (6, 4), "b_b": (1,)}),
        ("s = Reshape(r, flat) y = MatMul(b_w, s)", {"b_w": (4, 6), "flat": [0, 6, -1]}),
        ("f = Flatten(r) y = Gemm(f, b_w)", {"b_w": (96, 4)}),
    ],
)  # fmt: skip
def test_constants_go_into_biases(body: str, constants: dict[str, Constant]) -> None:
    result = cleaned(model(f"{FIRST} {body}", constants))
    assert result.report.checks[0].name == "cut equals the original"
    gone = next(iter(removed(result).values()))
    if "group = 2" in body:  # a place goes in both groups, or in none
        assert gone == [1]
    else:
        assert gone == DEAD
    assert {row["into"] for row in result.report.sections["folded constants"]} == {"bias"}


def test_the_folded_bias_is_the_sum_of_constant_terms() -> None:
    proto = model(f"{FIRST} y = Conv(r, b_w, b_b)", {"b_w": (4, 6, 3, 3), "b_b": (4,)})
    before = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in proto.graph.initializer}
    after = weights(cleaned(proto).model)
    constants = 1 / (1 + np.exp(-before["a_b"][DEAD]))
    expected = before["b_b"] + (before["b_w"][:, DEAD].sum(axis=(2, 3)) * constants).sum(axis=1)
    np.testing.assert_allclose(after["b_b"], expected, rtol=1e-6)
    np.testing.assert_array_equal(after["b_w"], before["b_w"][:, [0, 2, 5]].astype(np.float32))


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        ("y = Conv<pads = [1, 1, 1, 1]>(r, b_w, b_b)", {"b_w": (4, 6, 3, 3), "b_b": (4,)}),
        ("y = Conv<auto_pad = \"SAME_UPPER\">(r, b_w)", {"b_w": (4, 6, 3, 3)}),
        ("y = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1]>(r, b_w)",
         {"b_w": (6, 4, 3, 3)}),
        ("p = Pad(r, pads) y = Conv(p, b_w)", {"b_w": (4, 6, 3, 3), "pads": [0, 0, 1, 1, 0, 0, 1, 1]}),
        ("p = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(r) "
         "y = Conv(p, b_w)",
         {"b_w": (4, 6, 1, 1)}),
        ("c = Conv<pads = [1, 1, 1, 1]>(r, b_w) s = Relu(c) y = Conv(s, c_w)",
         {"b_w": (4, 6, 3, 3), "c_w": (2, 4, 1, 1)}),
    ],
)  # fmt: skip
def test_borders_of_zeros_take_a_carrier(body: str, constants: dict[str, Constant]) -> None:
    """All but one constant go: its weights take those of the others, which see the same border."""
    result = cleaned(model(f"{FIRST} {body}", constants))
    gone = next(iter(removed(result).values()))
    assert len(gone) == 2
    assert set(gone) < set(DEAD)
    assert [row["into"] for row in result.report.sections["folded constants"]] == ["weights"]


def test_the_carrier_is_the_largest_constant() -> None:
    """The ratio of two constants scales weights: a small one below would cost precision."""
    proto = model(f"{FIRST} y = Conv<pads = [1, 1, 1, 1]>(r, b_w)", {"b_w": (4, 6, 3, 3)})
    bias = next(t for t in proto.graph.initializer if t.name == "a_b")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.array([0, -3, 0, 2, -1, 0], np.float32), "a_b"))
    assert next(iter(removed(cleaned(proto)).values())) == [1, 4]


def test_grouped_borders_have_no_carrier() -> None:
    body = f"{FIRST} y = Conv<group = 2, pads = [1, 1, 1, 1]>(r, b_w)"
    proto = masked(graph_proto(body, constants={**A, "b_w": (4, 3, 3, 3)}), {"a_w": [1, 4]})
    with pytest.raises(NothingToPrune) as caught:
        onnxprune.prune(ir.from_proto(proto), pattern="dead")
    assert any(
        re.search(r"constant 0\.\d+ meets the zero-padded border of n2", text)
        for text in caught.value.reasons
    )


def test_a_shared_bias_is_changed_for_one_user_alone() -> None:
    body = f"{FIRST} b = Conv(r, b_w, s_b) t = Conv(x2, c_w, s_b) y = Add(b, t)"
    proto = model(body, {"b_w": (4, 6, 3, 3), "c_w": (4, 3, 1, 1), "s_b": (4,)},
                  inputs="float[N,3,8,8] x, float[N,3,4,4] x2")  # fmt: skip
    after = weights(cleaned(proto).model)
    np.testing.assert_array_equal(after["s_b"], onnx.numpy_helper.to_array(proto.graph.initializer[-1]))
    assert "s_b_2" in after


def test_a_model_output_keeps_its_name_behind_an_added_sum() -> None:
    body = f"{FIRST} p = GlobalAveragePool(r) f = Flatten(p) y = MatMul(f, b_w)"
    result = cleaned(model(body, {"b_w": (6, 4)}))
    assert [value.name for value in result.model.graph.outputs] == ["y"]
    assert [node.op_type for node in result.model.graph][-2:] == ["MatMul", "Add"]
    # the parameters of the added sum are counted
    costs = {row["what"]: row["after"] for row in result.report.sections["cost"]}
    arrays = weights(result.model).values()
    assert costs["parameters"] == sum(array.size for array in arrays)
    assert costs["bytes of weights"] == sum(array.nbytes for array in arrays)


def ordinary_cut(numbers: list[int]) -> tuple[Analysis, ir.Model, ir.Model, bool]:
    """Remove given channels of the first layer, dead or not, with folding."""
    proto = model(f"{FIRST} y = Conv<pads = [1, 1, 1, 1]>(r, b_w, b_b)", {"b_w": (4, 6, 3, 3), "b_b": (4,)})
    analysis = analyze(ir.from_proto(proto))
    (name,) = (group.name for group in analysis.groups if group.frozen is None)
    gone = analysis.removed_labels({name: np.array(numbers, np.int32)})
    sums = Sums(analysis.model.graph, analysis.channels)
    folds = plan_folds(sums, gone)
    small = cut(analysis.model, analysis.channels, gone)
    apply_folds(small, sums, folds, gone)
    twin = make_twin(analysis.original, analysis.channels, gone, exact_positions(folds))
    proved_cut(analysis, gone, trial_shapes(analysis))  # the plain cut equals the plain twin too
    return analysis, small, twin, all(fold.lossless for fold in folds)


@pytest.mark.parametrize(("numbers", "lossless"), [([1, 3], True), ([0, 1, 3], False), ([1, 3, 4], False)])
def test_any_cut_folds_what_is_constant(numbers: list[int], lossless: bool) -> None:
    analysis, small, twin, exact = ordinary_cut(numbers)
    assert exact == lossless
    assert prove(twin, small, trial_shapes(analysis), tolerance=1e-5).passed
    same = prove(analysis.original, small, trial_shapes(analysis), tolerance=1e-5).passed
    assert same == lossless  # without the carrier, constants are lost as any channel


def test_a_constant_chain_is_folded_once() -> None:
    """A channel that is constant because it reads constants alone: both are removed, neither counts twice."""
    matrix = np.zeros((5, 6, 1, 1), np.float32)
    matrix[0, DEAD], matrix[1:, [0, 2, 5]] = 1, 0.5
    body = f"{FIRST} b = Conv(r, b_w, b_b) s = Sigmoid(b) y = Conv(s, c_w)"
    result = cleaned(model(body, {"b_w": matrix, "b_b": (5,), "c_w": (3, 5, 1, 1)}))
    assert list(removed(result).values()) == [DEAD, [0]]


def test_half_precision_keeps_its_type() -> None:
    proto = model(f"{FIRST} y = Conv(r, b_w)", {"b_w": (4, 6, 3, 3)})
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    result = onnxprune.prune(ir.from_proto(proto), pattern="dead")
    assert {str(array.dtype) for array in weights(result.model).values()} == {"float16"}
    assert result.report.passed
