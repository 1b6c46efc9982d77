"""Equalisation and bias correction: what they must not change, and what they must improve."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models

from onnxprune.data import Dataset
from onnxprune.model.stored import put_numbers
from onnxprune.quantization.bias_correction import correct_biases
from onnxprune.quantization.channel_ranges import channel_ranges, inputs_of_layers
from onnxprune.quantization.equalize import equalize, find_joints
from onnxprune.quantization.forms import with_stored_int8
from onnxprune.quantization.layers import find_layers
from onnxprune.quantization.preparing import prepared
from onnxprune.runtime import open_session

IMAGES = Dataset.from_arrays(
    {"x": np.random.default_rng(1).standard_normal((24, 3, 8, 8)).astype(np.float32) + 1}
)
VECTORS = Dataset.from_arrays(
    {"x": np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32) + 1}
)
TOKENS = Dataset.from_arrays({"x": np.random.default_rng(1).standard_normal((24, 6, 32)).astype(np.float32)})

MODELS = {
    "residual": (small_models.residual_net, IMAGES),
    "depthwise": (small_models.depthwise_net, IMAGES),
    "concat": (small_models.concat_net, IMAGES),
    "mlp": (small_models.mlp, VECTORS),
    "attention": (small_models.attention, TOKENS),
}


def ranges_at(model, wanted, data):
    return channel_ranges(model, wanted, data, batch=8, threads=1)


@pytest.mark.parametrize("name", MODELS)
def test_equalizing_changes_nothing_in_float(name):
    build, data = MODELS[name]
    work = prepared(ir.from_proto(build()))
    before = open_session(work).run(dict(data.arrays))["y"]
    joints = find_joints(work)
    known = ranges_at(work, {joint.value: joint.axis for joint in joints}, data)
    assert equalize(joints, known) == len(joints)
    np.testing.assert_allclose(open_session(work).run(dict(data.arrays))["y"], before, rtol=1e-3, atol=1e-4)
    assert joints or name in ("concat", "attention", "residual")


def test_equalizing_evens_out_channels():
    work = prepared(ir.from_proto(small_models.depthwise_net()))
    (joint, *_) = find_joints(work)
    kernel = joint.maker.inputs[1]
    skewed = kernel.const_value.numpy().copy()
    skewed[::2] *= 50
    put_numbers(kernel, skewed)
    wanted = {joint.value: joint.axis}
    before = ranges_at(work, wanted, IMAGES)[joint.value].largest
    equalize([joint], ranges_at(work, wanted, IMAGES))
    after = ranges_at(work, wanted, IMAGES)[joint.value].largest

    def spread(largest):
        return np.log(largest[largest > 0]).std()

    assert spread(after) < 0.7 * spread(before)


def test_equalizing_keeps_zeros():
    work = prepared(ir.from_proto(small_models.depthwise_net()))
    kept = {}
    for joint in find_joints(work):
        for node in (joint.maker, *joint.readers):
            value = node.inputs[1]
            array = value.const_value.numpy().copy()
            array.reshape(-1)[::3] = 0
            put_numbers(value, array)
            kept[value] = array != 0
    joints = find_joints(work)
    equalize(joints, ranges_at(work, {joint.value: joint.axis for joint in joints}, IMAGES))
    for value, mask in kept.items():
        assert ((value.const_value.numpy() != 0) == mask).all()


@pytest.mark.parametrize("name", ["residual", "depthwise", "mlp"])
def test_correction_takes_the_mean_error_out(name):
    build, data = MODELS[name]
    work = prepared(ir.from_proto(build()))
    layers, _ = find_layers(work)
    layers = layers[:1]  # nothing rounded before it, so that its mean error is its own
    corrected = work.clone()
    nodes = [node for node in corrected.graph if node.name == layers[0].name]
    known = ranges_at(corrected, inputs_of_layers(nodes), data)
    assert correct_biases(corrected, layers, known, per_channel=True) == [layers[0].name]

    def mean_error(model):
        made = with_stored_int8(model, layers)
        name = next(str(node.outputs[0].name) for node in made.graph if node.name == layers[0].name)
        found = open_session(made, extra_outputs=[name]).run(dict(data.arrays))[name]
        exact = open_session(work, extra_outputs=[layers[0].output]).run(dict(data.arrays))[layers[0].output]
        axes = (0, *range(2, exact.ndim))
        return np.abs((found - exact).astype(np.float64).mean(axis=axes)).mean()

    assert mean_error(corrected) < 0.5 * mean_error(work)
