"""What could be done to a model is really made: what comes out, its cost, and what is left to compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models

from onnxprune import prune
from onnxprune.advice.candidates import Subject, structured, zeros
from onnxprune.advice.grid import grid_of, off_grid, stuck_off_grid
from onnxprune.advice.layers import Layer, Work, left_of
from onnxprune.errors import NothingToPrune
from onnxprune.model.io import load
from onnxprune.runtime import open_session


def subject_of(proto):
    return Subject(ir.from_proto(proto), None, 0)


def candidates(subject, off=None):
    return {candidate.name: candidate for candidate in structured(subject, off or {}, 4)}


def shapes(model):
    return {name: tuple(value.const_value.shape.numpy()) for name, value in model.graph.initializers.items()}


def test_channels_go_as_prune_lets_them_go():
    model = ir.from_proto(small_models.residual_net())
    made = candidates(Subject(model, None, 0))["remove 50% of the channels"].make()
    result = prune(model, pattern="channels", amount=0.5)
    assert shapes(made.model) == shapes(result.model)
    before, after = result.plan.predicted
    assert made.macs_ratio == after.macs / before.macs
    assert made.size_ratio == after.size_bytes / before.size_bytes


def test_a_transformer_has_heads_and_layers_to_lose():
    found = candidates(subject_of(small_models.attention()))
    assert {"remove 50% of the heads", "remove 50% of the channels", "remove 50% of the residual layers"} <= {
        *found
    }
    made = found["remove 50% of the heads"].make()
    open_session(made.model).run({"x": np.zeros((1, 6, 32), np.float32)})
    assert made.macs_ratio < 1


def test_layers_that_go_are_named_for_the_bound():
    subject = subject_of(small_models.residual_net())
    made = candidates(subject)["remove 50% of the residual layers"].make()
    names = {str(node.name) for node in subject.analysis.model.graph}
    assert made.gone
    assert made.gone <= names
    assert made.gone.isdisjoint(str(node.name) for node in made.model.graph)
    work = Work(subject.analysis, {"x": (1, 3, 8, 8)})
    gone, stays = sorted(made.gone)[0], next(iter(names - made.gone))
    layers = [Layer(name, "Conv", "part", 1.0, 1, 1, (name,)) for name in (gone, stays)]
    assert list(left_of(layers, work, None, made.gone)) == [0.0, 1.0]


def test_a_model_with_nothing_open_has_no_candidates():
    assert candidates(subject_of(small_models.frozen_net())) == {}


def test_dead_channels_come_first_where_there_are_any():
    proto = small_models.mlp()
    for tensor in proto.graph.initializer:
        if tensor.name in ("fc1.weight", "fc1.bias"):
            array = np.frombuffer(tensor.raw_data, np.float32).reshape(tuple(tensor.dims)).copy()
            array[:3] = 0
            tensor.raw_data = array.tobytes()
    subject = subject_of(proto)
    first = structured(subject, {}, 4)[0]
    assert (first.pattern, first.amount) == ("dead", None)
    assert shapes(first.make().model)["fc1.weight"] == (29, 16)
    assert "remove dead channels" not in candidates(subject_of(small_models.mlp()))


def test_zeros_take_half_the_weights_and_no_less_computation():
    made = zeros(subject_of(small_models.residual_net(width=32))).make()
    weight = made.model.graph.initializers["block1.conv1.weight"].const_value.numpy()
    assert (weight == 0).mean() == 0.5
    assert made.macs_ratio == 1.0
    assert 0.5 < made.size_ratio < 0.6


def test_the_original_is_not_touched():
    proto = small_models.residual_net()
    model = ir.from_proto(proto)
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    subject = Subject(model, None, 0)
    for candidate in [*structured(subject, {}, 4), zeros(subject)]:
        try:
            candidate.make()
        except NothingToPrune:  # a quarter of two layers is none
            assert candidate.pattern == "layers"
    assert all(
        (value.const_value.numpy() == before[name]).all() for name, value in model.graph.initializers.items()
    )


@pytest.mark.parametrize("width", [63, 62, 61])
def test_counts_off_the_grid_are_brought_onto_it_and_no_others(width):
    subject = subject_of(small_models.residual_net(width=width))
    off = off_grid(subject.analysis, 4)
    assert set(off.values()) == {width}
    made = candidates(subject, off)[f"bring channel counts ({width}) to multiples of 4"].make()
    assert {shape[0] for name, shape in shapes(made.model).items() if "conv" in name} == {60}
    assert 0.85 < made.macs_ratio < 1


def test_counts_on_the_grid_are_left_alone():
    subject = subject_of(small_models.residual_net(width=64))
    assert off_grid(subject.analysis, 4) == {}
    assert (
        off_grid(subject_of(small_models.residual_net(width=15)).analysis, 4) == {}
    )  # small ones have kernels
    assert not any(name.startswith("bring") for name in candidates(subject))


def test_counts_off_the_grid_that_must_stay_say_why():
    proto = small_models.frozen_net()
    weight, bias = proto.graph.initializer
    weight.dims[0] = bias.dims[0] = 18
    weight.raw_data, bias.raw_data = (
        np.ones((18, 27), np.float32).tobytes(),
        np.ones(18, np.float32).tobytes(),
    )
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 18
    ((name, size, reason),) = stuck_off_grid(subject_of(proto).analysis, 4)
    assert (size, "output" in reason) == (18, True)
    assert "only" in name


def test_grids_by_provider():
    assert [grid_of(name) for name in ("cpu", "tensorrt", "openvino")] == [4, 8, 1]


def test_models_are_loaded_from_files_too(tmp_path):
    path = small_models.save_model(small_models.mlp(), tmp_path / "m.onnx")
    assert Subject(load(path), None, 0).kinds == {"hidden": 2}
