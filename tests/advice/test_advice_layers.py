"""Kernels become layers: what shrinks, what stays and why, what limits each, and Amdahl's law over them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
import small_models

from onnxprune.advice.candidates import Subject
from onnxprune.advice.layers import (
    ELEMENTWISE,
    LAYOUT,
    MOVEMENT,
    NORMALISATION,
    POOLING,
    SHRINKS,
    STAYS,
    Layer,
    Work,
    amdahl,
    layers_of,
    left_of,
    undisturbed,
)
from onnxprune.advice.machine import Machine
from onnxprune.ops.kept import Kept

ONE = {"x": (1, 3, 8, 8)}
MACHINE = Machine(gmacs_per_second=10.0, gbytes_per_second=10.0, call_microseconds=0.2)


@dataclass(frozen=True)
class FakeKernel:
    name: str
    op_type: str
    covers: tuple[str, ...]
    microseconds: np.ndarray


def kernel(op_type, *covers, us=100.0):
    return FakeKernel(covers[0] if covers else op_type, op_type, covers, np.full(4, us))


def subject_of(proto):
    return Subject(ir.from_proto(proto), None, 0)


def layers(subject, *kernels, machine=MACHINE, samples=1):
    work = Work(subject.analysis, {"x": (samples, 3, 8, 8)})
    return layers_of(kernels, subject.analysis, work, subject.smallest(), machine), work


@pytest.fixture(scope="module")
def residual():
    return subject_of(small_models.residual_net())


def test_a_fused_kernel_is_the_convolution_it_computes(residual):
    (layer,), _ = layers(
        residual, kernel("Conv", "block1.conv1_node", "block1.bn1_node", "block1.bn1_relu_node")
    )
    assert (layer.name, layer.part, layer.why) == ("block1.conv1_node", SHRINKS, None)
    assert layer.macs == 16 * 16 * 9 * 8 * 8


def test_macs_and_activations_scale_with_the_batch_that_was_timed_and_weights_do_not(residual):
    work = Work(residual.analysis, ONE)
    four = Work(residual.analysis, {"x": (4, 3, 8, 8)})
    name = ["block1.conv1_node"]
    assert four.macs(name) == 4 * work.macs(name)
    weights = 4 * (16 * 16 * 9 + 16)
    assert four.moved_bytes(name) - weights == 4 * (work.moved_bytes(name) - weights)
    assert work.moved_bytes(name) == weights + 4 * (2 * 16 * 8 * 8)


def test_a_fixed_batch_is_the_one_that_was_timed():
    proto = small_models.residual_net()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    fixed = Work(subject_of(proto).analysis, {"x": (4, 3, 8, 8)})
    assert fixed.macs(["block1.conv1_node"]) == 4 * 16 * 16 * 9 * 8 * 8


def test_what_passes_inside_a_kernel_is_not_moved(residual):
    work = Work(residual.analysis, ONE)
    apart = work.moved_bytes(["block1.bn1_node"]) + work.moved_bytes(["block1.bn1_relu_node"])
    together = work.moved_bytes(["block1.bn1_node", "block1.bn1_relu_node"])
    assert apart - together == 2 * 4 * 16 * 8 * 8  # written once and read once less


def test_a_layer_whose_channels_must_stay_says_why():
    subject = subject_of(small_models.frozen_net())
    (layer,), _ = layers(subject, kernel("Conv", "only_node"))
    assert layer.part == STAYS
    assert "output" in layer.why


def test_a_product_of_computed_values_shrinks_with_heads_alone():
    subject = subject_of(small_models.attention())
    products = [
        str(node.name)
        for node in subject.analysis.model.graph
        if node.op_type == "MatMul" and not any(v.is_initializer() for v in node.inputs)
    ]
    assert products
    found, _ = layers(subject, *(kernel("MatMul", name) for name in products))
    assert {layer.part for layer in found} == {SHRINKS}


@pytest.mark.parametrize(
    ("op_type", "part"),
    [
        ("LayerNormalization", NORMALISATION),
        ("Softmax", NORMALISATION),
        ("GlobalAveragePool", POOLING),
        ("ReduceMean", POOLING),
        ("Transpose", MOVEMENT),
        ("Gather", MOVEMENT),
        ("Gelu", ELEMENTWISE),
        ("Add", ELEMENTWISE),
    ],
)
def test_families_of_what_multiplies_nothing(residual, op_type, part):
    (layer,), _ = layers(residual, kernel(op_type, "pool_node"))
    assert layer.part == part


def test_what_the_runtime_inserts_is_its_own(residual):
    (layer,), work = layers(residual, kernel("ReorderInput"))
    assert (layer.part, layer.nodes, layer.macs) == (LAYOUT, (), 0)
    assert list(left_of([layer], work, residual.smallest())) == [1.0]


def test_limits_go_by_what_the_machine_was_measured_to_do(residual):
    conv = 16 * 16 * 9 * 8 * 8  # 14.7 us at 10 G multiply-accumulates per second; 17.7 kB are 1.8 us
    (computing,), _ = layers(residual, kernel("Conv", "block1.conv1_node", us=20.0))
    assert computing.limit == "compute"
    assert computing.reached == pytest.approx(conv / 10e3 / 20)
    (moving,), _ = layers(residual, kernel("Relu", "block1.bn1_relu_node", us=20.0))
    assert moving.limit == "memory"
    (called,), _ = layers(residual, kernel("Relu", "block1.bn1_relu_node", us=4.9))
    assert (called.limit, called.reached) == ("overhead", None)
    (unknown,), _ = layers(residual, kernel("Conv", "block1.conv1_node"), machine=None)
    assert (unknown.limit, unknown.reached) == (None, None)


def test_work_left_is_what_a_cut_really_leaves(residual):
    found, work = layers(
        residual,
        kernel("Conv", "block1.conv1_node"),
        kernel("Conv", "stem_node"),
        kernel("Relu", "stem_bn_relu_node"),
    )
    removed = residual.removed("channels", 0.5)
    kept = Kept(residual.analysis.channels, residual.analysis.removed_labels(removed))
    assert list(left_of(found, work, kept)) == [0.25, 0.5, 0.5]
    whole = Kept(residual.analysis.channels, residual.analysis.removed_labels({}))
    assert list(left_of(found, work, whole)) == [1.0, 1.0, 1.0]


def test_amdahl_keeps_what_is_no_layers():
    two = [
        Layer("a", "Conv", SHRINKS, 60.0, 1, 1, ("a",)),
        Layer("b", "Add", ELEMENTWISE, 20.0, 0, 1, ("b",)),
    ]
    assert amdahl(two, [0.5, 1.0], 100.0) == pytest.approx((30 + 20 + 20) / 100)
    assert amdahl(two, [0.0, 0.0], 100.0) == pytest.approx(0.2)
    assert amdahl(two, [1.0, 1.0], 50.0) == pytest.approx(1.0)  # layers that seem longer than the whole


def test_a_disturbed_run_does_not_count():
    assert undisturbed([10.0, 11.0, 10.0, 900.0, 10.0]) == 10.0


def test_each_cut_has_figures_of_its_own_whatever_became_of_the_one_before(residual):
    found, work = layers(residual, kernel("Conv", "block1.conv1_node"))

    def left(count):
        removed = residual.analysis.removed_labels({name: np.arange(count) for name in ("block1.conv1",)})
        return next(left_of(found, work, Kept(residual.analysis.channels, removed)))

    assert [left(count) for count in (8, 4, 12, 2, 6)] == [0.5, 0.75, 0.25, 0.875, 0.625]


def test_overhead_does_not_shrink(residual):
    (relu,), work = layers(residual, kernel("Relu", "block1.bn1_relu_node", us=4.9))
    assert list(left_of([relu], work, residual.smallest())) == [1.0]
    assert list(left_of([relu], work, None, frozenset(relu.nodes))) == [0.0]
