"""What folding writes computes the same, in fewer nodes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import small_models
from onnx import numpy_helper

from onnxprune.quantization.folding import fold_affine, shorten_hard_swish
from onnxprune.quantization.preparing import prepared
from onnxprune.runtime import open_session

X = np.random.default_rng(3).standard_normal((2, 3, 8, 8)).astype(np.float32)


def model_of(body: str, constants: dict[str, np.ndarray], shape: str = "n, 3, 8, 8") -> ir.Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[n, k, h, w] y) {{ {body} }}'
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return ir.from_proto(proto)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) + 0.3).astype(np.float32)


CHANNELS = {
    "w": drawn(4, 3, 3, 3),
    "c": drawn(1, 4, 1, 1, seed=1),
    "d": drawn(4, 1, 1, seed=2),
    "s": drawn(seed=3),
}


@pytest.mark.parametrize(
    "behind", ["Add(a, c)", "Add(d, a)", "Sub(a, c)", "Sub(c, a)", "Mul(a, d)", "Div(a, c)", "Mul(s, a)"]
)
def test_constants_behind_a_convolution_become_part_of_it(behind):
    used = {
        name: array
        for name, array in CHANNELS.items()
        if name == "w" or f"{name}," in behind or f" {name})" in behind
    }
    model = model_of(f"a = Conv(x, w) y = {behind}", used)
    expected = open_session(model, optimize="none").run({"x": X})["y"]
    assert fold_affine(model) == 1
    assert [node.op_type for node in model.graph] == ["Conv"]
    np.testing.assert_allclose(open_session(model).run({"x": X})["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("behind", ["Div(c, a)", "Add(a, a)", "Mul(a, m)"])
def test_what_is_no_factor_of_a_channel_stays(behind):
    constants = {"w": CHANNELS["w"], "c": CHANNELS["c"], "m": drawn(1, 1, 6, 6)}
    used = {
        name: array
        for name, array in constants.items()
        if name == "w" or f"{name}," in behind or f" {name})" in behind
    }
    model = model_of(f"a = Conv(x, w) y = {behind}", used)
    assert fold_affine(model) == 0


def test_what_others_read_too_stays():
    model = model_of("a = Conv(x, w) b = Add(a, c) y = Mul(a, b)", {n: CHANNELS[n] for n in ("w", "c")})
    assert fold_affine(model) == 0


def test_batch_norms_fold_and_zeros_stay():
    proto = small_models.residual_net()
    for tensor in proto.graph.initializer:
        if len(tensor.dims) == 4:
            array = numpy_helper.to_array(tensor).copy()
            array[:, ::2] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    model = ir.from_proto(proto)
    work = prepared(model)
    assert "BatchNormalization" not in {node.op_type for node in work.graph}
    for name, value in work.graph.initializers.items():
        if value.shape is not None and len(value.shape) == 4:
            assert not value.const_value.numpy()[:, ::2].any(), name
            assert value.const_value.numpy()[:, 1::2].all(), name
    np.testing.assert_allclose(
        open_session(work).run({"x": X})["y"], open_session(model).run({"x": X})["y"], rtol=1e-3, atol=1e-4
    )


SWISH = "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) y = Div(c, six)"
NUMBERS = {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)}


def test_a_hard_swish_takes_two_nodes():
    model = model_of(SWISH, {name: np.array(value) for name, value in NUMBERS.items()})
    expected = open_session(model).run({"x": 4 * X})["y"]
    assert shorten_hard_swish(model) == 1
    assert sorted(node.op_type for node in model.graph) == ["HardSigmoid", "Mul"]
    np.testing.assert_allclose(open_session(model).run({"x": 4 * X})["y"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", ["three", "zero", "six"])
def test_other_numbers_are_no_hard_swish(changed):
    numbers = {**NUMBERS, changed: np.float32(1.5)}
    model = model_of(SWISH, {name: np.array(value) for name, value in numbers.items()})
    assert shorten_hard_swish(model) == 0


def test_an_old_model_gets_new_operators():
    text = """<ir_version: 7, opset_import: ["" : 11]> g (float[n, 3, 8, 8] x) => (float[n, 3, h] y)
        { a = ReduceMean <axes = [3], keepdims = 1> (x) y = Squeeze <axes = [3]> (a) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    work = prepared(model)
    assert work.graph.opset_imports[""] >= 13
    assert [str(size) for size in work.graph.outputs[0].shape] == ["n", "3", "h"]
    np.testing.assert_allclose(open_session(work).run({"x": X})["y"], X.mean(axis=3), rtol=1e-5, atol=1e-6)
