"""The proof, and that it can fail."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph

from onnxprune.prove import TOLERANCE, prove, relative_error

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("result", "reference", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, 2.0], 0.25),
        ([-3.0], [3.0], 2.0),
        ([], [], 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1e-30], [0.0], INF),
        ([0.0], [1e-30], 1.0),
        ([1.0, NAN], [1.0, NAN], 0.0),
        ([NAN, 1.0], [1.0, NAN], INF),
        ([1.0, NAN], [1.0, 2.0], INF),
        ([1.0, 2.0], [1.0, NAN], INF),
        ([1.0, INF], [1.0, INF], 0.0),
        ([1.0, INF], [1.0, -INF], INF),
        ([1.0, NAN], [1.0, INF], INF),
        ([NAN], [NAN], INF),
    ],
)
def test_relative_error(result: list[float], reference: list[float], expected: float) -> None:
    with np.errstate(all="ignore"):
        assert relative_error(np.array(result), np.array(reference)) == expected


def test_relative_error_of_other_types() -> None:
    assert relative_error(np.array([True, False]), np.array([True, True])) == 1.0
    assert relative_error(np.array([3, 4], np.int64), np.array([3, 4], np.int64)) == 0.0
    assert relative_error(np.array([100], np.uint8), np.array([200], np.uint8)) == 0.5  # no wrap around
    big = np.array([6e4], np.float16)
    assert relative_error(big, -big) == 2.0  # no overflow


def linear(weight: np.ndarray, body: str = "y = MatMul(x, w)") -> ir.Model:
    return graph(body, inputs="float[N,4] x", constants={"w": weight})


WEIGHT = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
SIZES = [{"x": (2, 4)}, {"x": (5, 4)}]


def test_equal_models_pass() -> None:
    check = prove(linear(WEIGHT), linear(WEIGHT.copy()), SIZES, tolerance=TOLERANCE)
    assert check.passed
    assert "over 2 random inputs" in check.detail


@pytest.mark.parametrize("change", [1e-2, 1.0, NAN, INF])
def test_one_wrong_weight_fails(change: float) -> None:
    other = WEIGHT.copy()
    other[1, 2] += change
    assert not prove(linear(WEIGHT), linear(other), SIZES, tolerance=TOLERANCE).passed


def test_the_tolerance_decides() -> None:
    other = WEIGHT * np.float32(1 + 1e-3)
    assert not prove(linear(WEIGHT), linear(other), SIZES, tolerance=1e-4).passed
    assert prove(linear(WEIGHT), linear(other), SIZES, tolerance=1e-2).passed


def test_another_output_shape_fails() -> None:
    check = prove(linear(WEIGHT), linear(WEIGHT[:, :2].copy()), SIZES, tolerance=TOLERANCE)
    assert not check.passed
    assert "shape" in check.detail


def test_an_output_that_is_never_finite_is_no_proof() -> None:
    weight = np.full((4, 3), NAN, np.float32)
    check = prove(linear(weight), linear(weight), SIZES, tolerance=TOLERANCE)
    assert not check.passed
    assert "not finite" in check.detail


def test_a_model_that_does_not_load_fails() -> None:
    check = prove(linear(WEIGHT), linear(WEIGHT, "y = com.microsoft.NoSuchOp(x)"), SIZES, tolerance=TOLERANCE)
    assert not check.passed
    assert "\n" not in check.detail


def test_a_model_that_runs_only_at_one_size_fails_at_another() -> None:
    """A batch written into the cut model: the first size passes, the second must not."""
    fixed = graph(
        "h = MatMul(x, w) y = Reshape(h, s)", inputs="float[N,4] x", constants={"w": WEIGHT, "s": [2, 3]}
    )
    assert prove(linear(WEIGHT), fixed, SIZES[:1], tolerance=TOLERANCE).passed
    assert not prove(linear(WEIGHT), fixed, SIZES, tolerance=TOLERANCE).passed


def test_sizes_that_the_original_does_not_take_are_skipped() -> None:
    fixed = graph(
        "h = MatMul(x, w) y = Reshape(h, s)", inputs="float[N,4] x", constants={"w": WEIGHT, "s": [2, 3]}
    )
    check = prove(fixed, fixed, SIZES, tolerance=TOLERANCE)
    assert check.passed
    assert "over 1 random" in check.detail


def test_an_original_that_does_not_run_is_no_proof() -> None:
    wrong = [{"x": (2, 5)}]
    assert not prove(linear(WEIGHT), linear(WEIGHT), wrong, tolerance=TOLERANCE).passed


def test_other_inputs_are_drawn_from_another_seed() -> None:
    """The error is that of the inputs, so two seeds give two errors."""
    other = WEIGHT + np.float32(1e-3) * np.eye(4, 3, dtype=np.float32)
    details = {prove(linear(WEIGHT), linear(other), SIZES, tolerance=1, seed=s).detail for s in range(4)}
    assert len(details) > 1
