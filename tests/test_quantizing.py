"""Quantizing from end to end: zeros, patterns, bounds, reports, refusals."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import quantize, save_quantized
from onnxprune.data import Dataset
from onnxprune.errors import (
    DataError,
    ModelError,
    NothingToPrune,
    PlanError,
    RuntimeFailure,
    UsageError,
    VerificationError,
)
from onnxprune.ops.weights import locate_weights
from onnxprune.runtime import open_session
from onnxprune.verification.zeros import count_zeros


def images(count: int = 64) -> Dataset:
    random = np.random.default_rng(5)
    return Dataset.from_arrays({"x": random.standard_normal((count, 3, 8, 8)).astype(np.float32)}, "images")


def tokens(count: int = 32) -> Dataset:
    random = np.random.default_rng(5)
    return Dataset.from_arrays({"x": random.standard_normal((count, 6, 32)).astype(np.float32)}, "tokens")


def saved(build, path, **options):
    onnx.save(build(**options), path)
    return path


@pytest.fixture
def residual(tmp_path):
    return saved(small_models.residual_net, tmp_path / "model.onnx", width=16)


def pruned(path, pattern, tmp_path):
    result = onnxprune.prune(onnxprune.load(path), pattern=pattern, amount=None if pattern == "2:4" else 0.6)
    onnxprune.save_pruned(result, tmp_path / "pruned.onnx", plan_folder=tmp_path / "p.plan")
    return tmp_path / "pruned.onnx"


def outputs(path, data):
    return open_session(path).run(dict(data.arrays))["y"]


@pytest.mark.long
@pytest.mark.parametrize("computing", ["integer", "float", "auto"])
def test_outputs_stay_close_and_the_file_is_a_third(residual, tmp_path, computing):
    result = quantize(residual, data=images(), computing=computing)
    report = save_quantized(result, tmp_path / "int8.onnx", against=residual)
    assert report.passed
    exact, rough = outputs(residual, images()), outputs(tmp_path / "int8.onnx", images())
    assert 0 < np.abs(rough - exact).max() < 0.15 * np.abs(exact).max()
    stored = onnx.load(tmp_path / "int8.onnx")
    types = [tensor.data_type for tensor in stored.graph.initializer if np.prod(tensor.dims) > 200]
    assert types
    assert set(types) == {onnx.TensorProto.INT8}
    computes = {node.op_type for node in stored.graph.node}
    assert ("QuantizeLinear" in computes) or computing != "integer"
    assert ("QuantizeLinear" not in computes) or computing != "float"
    rows = report.sections["layers"]
    assert {row["layer"] for row in rows} >= {"stem_node"}
    assert all(row["bits"] == 8 and row["sqnr_db"] > 15 for row in rows if row["weights"] >= 64)
    assert report.sections["size"]["times_smaller"] > 1.5


@pytest.mark.parametrize(
    ("pattern", "computing"),
    [
        pytest.param("2:4", "integer", marks=pytest.mark.long),
        ("unstructured", "float"),
        ("2:4", "float"),
        ("block:4x4", "float"),
    ],
)
def test_zeros_and_patterns_stay(residual, tmp_path, pattern, computing):
    path = pruned(residual, pattern, tmp_path)
    before = count_zeros(locate_weights(onnxprune.load(path))[0], None)
    result = quantize(path, data=images(), computing=computing, plan=tmp_path / "p.plan", equalize="on")
    report = save_quantized(result, tmp_path / "int8.onnx", against=path)
    names = [check.name for check in report.checks]
    assert "zeros kept" in names
    assert ("patterns kept" in names) == (pattern == "2:4")
    after = count_zeros(locate_weights(onnxprune.load(tmp_path / "int8.onnx"))[0], None)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert new.zeros >= old.zeros
        assert pattern != "2:4" or old.pattern != "2:4" or new.pattern in ("2:4", "1:4")
    plan = onnxprune.load_plan(tmp_path / "p.plan")
    assert onnxprune.verify(tmp_path / "int8.onnx", plan=plan).checks
    masked = {check.name: check for check in onnxprune.verify(tmp_path / "int8.onnx", plan=plan).checks}
    assert masked["declared zeros"].passed, masked["declared zeros"].detail


def test_a_lost_zero_is_no_result(residual, tmp_path):
    path = pruned(residual, "unstructured", tmp_path)
    result = quantize(path, data=images(), computing="float")
    for value in result.model.graph.initializers.values():
        tensor = value.const_value
        if tensor.dtype == ir.DataType.INT8 and len(tensor.shape) == 4:
            array = tensor.numpy().copy()
            array[tuple(np.argwhere(array == 0)[0])] = 3
            value.const_value = ir.Tensor(array, name=value.name)
            break
    with pytest.raises(VerificationError, match=r"zeros kept: .*1 of [0-9]+ zeros are lost"):
        save_quantized(result, tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_a_plan_whose_zeros_are_not_there_is_refused(residual, tmp_path):
    pruned(residual, "unstructured", tmp_path)
    with pytest.raises(PlanError, match="apply the plan to the model first"):
        quantize(residual, data=images(), plan=tmp_path / "p.plan")


@pytest.mark.long
def test_layers_go_back_to_float_until_the_bound_is_met(residual, tmp_path):
    settings = {"data": images(), "metric": "cosine", "equalize": "off", "correct_bias": "off"}
    loose = quantize(residual, computing="integer", max_drop=0.5, **settings)
    loss = 1 - loose.report.sections["steps"][0]["cosine"]
    assert loss > 0
    tight = quantize(residual, computing="integer", max_drop=0.3 * loss, **settings)
    last = tight.report.sections["steps"][-1]
    assert 1 - last["cosine"] <= 0.3 * loss
    rows = tight.report.sections["layers"]
    back = [row for row in rows if row["computes_in"] == "float"]
    assert len(back) > 0
    assert all("the bound is missed" in row["reason"] and row["alone_sqnr_db"] > 0 for row in back)
    others = [row["alone_sqnr_db"] for row in rows if row not in back]
    assert not others or max(row["alone_sqnr_db"] for row in back) <= min(others) + 1e-9
    strict = quantize(residual, computing="integer", max_drop=0.0, **settings)
    assert {row["bits"] for row in strict.report.sections["layers"]} == {32}
    np.testing.assert_array_equal(
        open_session(strict.model).run(dict(images().arrays))["y"].argmax(-1),
        outputs(residual, images()).argmax(-1),
    )


def test_what_float_has_lost_already_is_not_charged_to_int8(residual, tmp_path):
    path = pruned(residual, "unstructured", tmp_path)
    result = quantize(path, reference=residual, data=images(), metric="cosine", max_drop=0.001)
    notes = {note.name: note.reason for note in result.report.skipped}
    assert "the model in float has lost" in notes["bound"]
    judged = images().take(np.arange(3, 64, 4))  # every fourth is set aside
    found = onnxprune.validate(path, residual, data=judged, metric="cosine")
    allowed = result.report.sections["quantization"]["it may lose"]
    assert allowed == pytest.approx(1 - found.overall.model.value + 0.001)
    assert {row["bits"] for row in result.report.sections["layers"] if row["weights"] >= 64} == {8}


@pytest.mark.long
def test_layers_that_are_named_stay_as_they_are(residual, tmp_path):
    result = quantize(residual, data=images(), computing="integer", keep_float=["stem*"])
    notes = {note.name: note.reason for note in result.report.skipped}
    assert notes["stem_node"] == "stays in float: 'stem*' asks for it"
    path = tmp_path / "int8.onnx"
    save_quantized(result, path)
    stored = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    assert stored["stem.weight"].data_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize(
    ("equalize", "correct_bias"), [("auto", "auto"), ("on", "on"), ("on", "off"), ("off", "auto")]
)
def test_each_step_says_what_it_gave(tmp_path, equalize, correct_bias):
    path = saved(small_models.depthwise_net, tmp_path / "model.onnx")
    result = quantize(path, data=images(32), computing="float", equalize=equalize, correct_bias=correct_bias)
    steps = {row["step"]: row for row in result.report.sections["steps"]}
    assert ("biases corrected" in steps) == (correct_bias != "off")
    assert ("equalized" in steps) == (equalize == "on")
    for name, wish in (("equalized", equalize), ("biases corrected", correct_bias)):
        if wish == "on":
            assert steps[name]["kept"]
    kept = [row["output_sqnr_db"] for row in result.report.sections["steps"] if row["kept"]]
    if "on" not in (equalize, correct_bias):
        assert kept == sorted(kept)


@pytest.mark.parametrize("form", ["dynamic", "int4", "float16"])
def test_other_forms_need_no_data(tmp_path, form):
    path = saved(small_models.attention, tmp_path / "model.onnx", width=128, heads=4)
    result = quantize(path, form=form)
    report = save_quantized(result, tmp_path / "out.onnx", against=path)
    random = np.random.default_rng(0)
    data = Dataset.from_arrays({"x": random.standard_normal((4, 6, 128)).astype(np.float32)})
    exact, rough = outputs(path, data), outputs(tmp_path / "out.onnx", data)
    assert 0 < np.abs(rough - exact).max() < 0.3 * np.abs(exact).max()
    bits = {row["bits"] for row in report.sections["layers"] if row["weights"] >= 1 << 14}
    assert bits == {{"dynamic": 8, "int4": 4, "float16": 16}[form]}
    limit = {"dynamic": 3, "int4": 5, "float16": 1.8}[form]
    assert report.sections["size"]["times_smaller"] > limit


def test_small_matrices_have_more_than_four_bits(tmp_path):
    path = saved(small_models.attention, tmp_path / "model.onnx", width=96, heads=4)
    result = quantize(path, form="int4")
    rows = {row["layer"]: row for row in result.report.sections["layers"]}
    assert {row["bits"] for row in rows.values()} == {4, 8}
    for node in result.model.graph:
        if node.name in rows and node.op_type == "MatMul":
            assert rows[node.name]["bits"] == 8
    save_quantized(result, tmp_path / "out.onnx", against=path)


@pytest.mark.parametrize("form", ["dynamic", "int4", "float16"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_other_forms_keep_zeros(tmp_path, form, pattern):
    path = saved(small_models.attention, tmp_path / "model.onnx", width=128, heads=4)
    path = pruned(path, pattern, tmp_path)
    report = save_quantized(quantize(path, form=form), tmp_path / "out.onnx", against=path)
    check = next(check for check in report.checks if check.name == "zeros kept")
    assert int(check.detail.split()[1]) > 10000
    assert ("patterns kept" in {check.name for check in report.checks}) == (pattern == "2:4")


def test_numbers_that_float16_lacks_are_reported(tmp_path):
    proto = small_models.mlp()
    tensor = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 2)
    array = numpy_helper.to_array(tensor).copy()
    array[0, :3] = 1e6, 1e-9, 0
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    result = quantize(ir.from_proto(proto), form="float16")
    (note,) = (note for note in result.report.skipped if note.name == tensor.name)
    assert note.reason.startswith("float16: 1 numbers beyond 65504 become that; 1 too small")


def test_names_notes_and_shapes_of_the_user_stay(residual, tmp_path):
    proto = onnx.load(residual)
    proto.metadata_props.add(key="classes", value="cat,dog")
    onnx.save(proto, residual)
    save_quantized(quantize(residual, data=images()), tmp_path / "int8.onnx", against=residual)
    after = onnx.load(tmp_path / "int8.onnx")
    assert {(entry.key, entry.value) for entry in after.metadata_props} == {("classes", "cat,dog")}
    assert after.graph.input[0].type == proto.graph.input[0].type
    assert after.graph.output[0].type == proto.graph.output[0].type
    nodes = {node.name for node in after.graph.node}
    assert {node.name for node in proto.graph.node if node.op_type == "Conv"} <= nodes


@pytest.mark.long
def test_the_model_that_was_given_is_not_changed(residual):
    model = onnxprune.load(residual)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    quantize(model, data=images(), computing="integer", equalize="on", correct_bias="on")
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.long
def test_the_same_samples_give_the_same_bytes(residual, tmp_path):
    for name in ("one", "two"):
        result = quantize(residual, data=images(), computing="integer")
        save_quantized(result, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, UsageError, "int8 takes the ranges of activations from samples: give data"),
        ({"form": "int7"}, UsageError, "form is one of int8, dynamic, int4, float16, not 'int7'"),
        ({"calibration": "minimax"}, UsageError, "did you mean 'minmax'"),
        ({"form": "int4", "block_size": 24}, UsageError, "a power of two from 16 on, not 24"),
        ({"form": "float16", "max_drop": 0.1}, UsageError, "judged on samples"),
        ({"form": "int4"}, NothingToPrune, "no large MatMul"),
        ({"data": tokens()}, DataError, "x"),
        ({"data": images(), "keep_float": "*"}, NothingToPrune, "no layer of the model can be quantized"),
    ],
)
def test_refusals_are_one_line(residual, options, error, message):
    with pytest.raises(error, match=message) as failure:
        quantize(residual, **options)
    assert "\n" not in str(failure.value)


def test_a_small_matrix_that_many_products_share_stays_in_float():
    lines = "  ".join(f"v{n + 1} = MatMul(v{n}, W)" for n in range(8))
    text = f"g (float[4, 4] v0) => (float[4, 4] v8) <float[4, 4] W = {{{', '.join('1' * 16)}}}> {{ {lines} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    with pytest.raises(NothingToPrune, match="8 products with 16 weights between them") as failure:
        quantize(ir.from_proto(proto), form="dynamic")
    assert len(failure.value.reasons) == 8


@pytest.mark.long
def test_a_quantized_model_is_not_quantized_again(residual, tmp_path):
    for computing in ("integer", "float"):
        path = tmp_path / f"{computing}.onnx"
        save_quantized(quantize(residual, data=images(), computing=computing), path)
        with pytest.raises(NothingToPrune, match="quantized already"):
            quantize(path, data=images())


def test_integers_that_can_not_be_had_leave_float(residual, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeFailure("no such kernel")

    monkeypatch.setattr("onnxprune.quantizing.int8.in_int8", refuse)
    result = quantize(residual, data=images())
    notes = {note.name: note.reason for note in result.report.skipped}
    assert notes["int8, ranges from data"] == "not taken: no such kernel"
    assert {row["computes_in"] for row in result.report.sections["layers"]} == {"float"}
    with pytest.raises(RuntimeFailure, match="no such kernel"):
        quantize(residual, data=images(), computing="integer")


def test_matrices_of_gemm_keep_their_zero_points(tmp_path):
    """ONNX Runtime 1.23 runs no others where there is a scale for each output."""
    path = tmp_path / "mlp.onnx"
    onnx.save(small_models.mlp(), path)
    samples = {"x": np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)}
    found = quantize(path, data=Dataset.from_arrays(samples), computing="integer").model
    gemms = [node for node in found.graph if node.op_type == "Gemm"]
    assert gemms
    for gemm in gemms:
        restored = gemm.inputs[1].producer()
        scale, zero = (restored.inputs[place].const_value.numpy() for place in (1, 2))
        assert scale.shape == zero.shape


def model_of(nodes, outputs, **tensors):
    weights = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


def test_lists_are_not_converted_to_float16():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("SequenceConstruct", ["h", "x"], ["y"], name="listed"),
    ]
    outputs = [helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)]
    with pytest.raises(ModelError, match=r"'listed' is a SequenceConstruct: .* no lists"):
        quantize(model_of(nodes, outputs, w=np.ones((4, 4), np.float32)), form="float16")


def test_a_model_without_weights_has_nothing_to_convert():
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 4])]
    with pytest.raises(NothingToPrune, match="no float32 weight"):
        quantize(model_of([helper.make_node("Relu", ["x"], ["y"])], outputs), form="float16")
