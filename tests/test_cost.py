"""Parameters and multiply-accumulates, counted by hand; and those of a plan, before it is carried out."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import Constant, graph, parameters, some_channels
from generated import generated_model

from onnxprune.analyze import analyze
from onnxprune.cost import cost_of
from onnxprune.ops.kept import Kept
from onnxprune.rewrite.cut import cut
from onnxprune.types import Cost

SHAPES = {"x": [2, 3, 6, 6]}


def cost(body: str, shapes: dict[str, list[int]], **options: object) -> Cost:
    analysis = analyze(graph(body, **options), input_shapes=shapes)  # type: ignore[arg-type]
    return cost_of(analysis.model.graph, analysis.channels)


def test_a_convolution_by_hand() -> None:
    constants: dict[str, Constant] = {"w": (8, 3, 3, 3), "b": (8,)}
    found = cost("y = Conv(x, w, b)", SHAPES, constants=constants)
    assert found.params == 8 * 27 + 8
    assert found.size_bytes == 4 * found.params
    assert found.macs == 8 * 4 * 4 * 27  # outputs of one sample times the 27 products of each


@pytest.mark.parametrize(
    ("body", "inputs", "constants", "params", "macs"),
    [
        ("y = Conv<group = 3>(x, w)", "float[2,3,6,6] x", {"w": (6, 1, 3, 3)}, 54, 2 * 6 * 16 * 9),
        ("y = ConvTranspose(x, w)", "float[2,3,6,6] x", {"w": (3, 5, 2, 2)}, 60, 2 * 3 * 36 * 5 * 4),
        ("y = Gemm<transB = 1>(x, w, b)", "float[2,6] x", {"w": (5, 6), "b": (5,)}, 35, 2 * 5 * 6),
        ("y = Gemm<transA = 1>(x, w)", "float[6,2] x", {"w": (6, 5)}, 30, 2 * 5 * 6),
        ("y = MatMul(x, w)", "float[2,7,6] x", {"w": (6, 5)}, 30, 2 * 7 * 5 * 6),
        ("t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(x, t)", "float[2,7,6] x", {}, 0, 2 * 7 * 7 * 6),
        ("r = Relu(x) y = Add(r, w)", "float[2,6] x", {"w": (6,)}, 6, 0),
        ("y = Reshape(x, s)", "float[2,6] x", {"s": [3, 4]}, 0, 0),
    ],
)
def test_operators_by_hand(
    body: str, inputs: str, constants: dict[str, Constant], params: int, macs: int
) -> None:
    shapes = {"x": [int(size) for size in inputs[6:-3].split(",")]}
    found = cost(body, shapes, inputs=inputs, constants=constants)
    assert (found.params, found.macs) == (params, macs)


def test_sizes_of_types() -> None:
    half = np.ones((4, 3), np.float16)
    found = cost(
        "y = MatMul(x, w)", {"x": [2, 4]}, inputs="float16[2,4] x", outputs="float16 y", constants={"w": half}
    )
    assert (found.params, found.size_bytes) == (12, 24)


def test_integers_are_bytes_and_no_parameters() -> None:
    found = cost("y = Reshape(x, s)", {"x": [2, 6]}, inputs="float[2,6] x", constants={"s": [3, 4]})
    assert (found.params, found.size_bytes) == (0, 16)


def test_a_cut_by_hand() -> None:
    """Two of eight channels less: rows of one matrix, columns of the other, entries of the bias."""
    body = "h = Gemm(x, a, b) r = Relu(h) y = MatMul(r, c)"
    constants: dict[str, Constant] = {"a": (6, 8), "b": (8,), "c": (8, 3)}
    analysis = analyze(graph(body, inputs="float[N,6] x", constants=constants), input_shapes={"x": [2, 6]})
    gone = analysis.removed_labels({analysis.groups[0].name: np.array([0, 5], np.int32)})
    found = cost_of(analysis.model.graph, analysis.channels, Kept(analysis.channels, gone))
    assert found == Cost(params=36 + 6 + 18, macs=6 * 6 + 6 * 3, size_bytes=4 * 60)


@pytest.mark.parametrize("seed", range(12))
def test_predicted_is_actual(seed: int) -> None:
    """The cost of the cut, predicted before it and counted anew after it, in all three figures."""
    analysis = analyze(ir.from_proto(generated_model(seed, 5)))
    gone = analysis.removed_labels(some_channels(analysis, seed, 0.4))
    predicted = cost_of(analysis.model.graph, analysis.channels, Kept(analysis.channels, gone))
    pruned = cut(analysis.model, analysis.channels, gone)
    again = analyze(pruned, input_shapes=analysis.shapes.input_shapes)
    actual = cost_of(again.model.graph, again.channels)
    assert predicted.macs == actual.macs
    assert predicted.params == actual.params == parameters(pruned)
