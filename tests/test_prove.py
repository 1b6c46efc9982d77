"""The proof, and that it can fail."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph

from onnxprune.model.scopes import number_nodes
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


ROUNDED = "h = MatMul(x, w) q = QuantizeLinear(h, s, z) y = DequantizeLinear(q, s, z)"


def rounded(weight: np.ndarray) -> ir.Model:
    constants = {"w": weight, "s": np.float32(0.25), "z": np.uint8(128)}
    return graph(ROUNDED, inputs="float[N,4] x", constants=constants)


def test_a_last_bit_that_rounding_blows_up_passes() -> None:
    """Some sums lie next to the middle between two steps: a change of 1e-6 takes them to the next one."""
    other, sizes = WEIGHT * np.float32(1 + 3e-6), [{"x": (50_000, 4)}]
    check = prove(rounded(WEIGHT), rounded(other), sizes, tolerance=TOLERANCE)
    assert check.passed, check.detail
    before, after = re.findall(r"\d\.\de[+-]\d\d", check.detail)[:2]
    assert float(before) < 1e-5
    assert float(after) > 1e-3, "the test must hit the middle between two steps"


@pytest.mark.parametrize("change", [1e-2, 1.0, NAN])
def test_one_wrong_weight_fails_in_front_of_a_quantizer(change: float) -> None:
    """Even a change below one step, which the rounding would hide from most inputs."""
    other = WEIGHT.copy()
    other[1, 2] += change
    assert not prove(rounded(WEIGHT), rounded(other), SIZES, tolerance=TOLERANCE).passed


def test_models_that_agree_as_they_are_may_differ_a_little_without_rounding() -> None:
    """What an ill-conditioned model does with a last bit; the same change fails once it shows in a step."""
    few = [{"x": (2, 4)}]
    small = WEIGHT * np.float32(1 + 5e-4)
    check = prove(rounded(WEIGHT), rounded(small), few, tolerance=TOLERANCE)
    assert check.passed
    assert "(0.0e+00 with it)" in check.detail
    assert not prove(rounded(WEIGHT), rounded(small), [{"x": (50_000, 4)}], tolerance=TOLERANCE).passed
    large = WEIGHT * np.float32(1 + 2e-3)
    assert not prove(rounded(WEIGHT), rounded(large), few, tolerance=TOLERANCE).passed


def test_models_that_do_not_run_as_they_are_fail() -> None:
    check = prove(rounded(WEIGHT), rounded(WEIGHT[:3]), SIZES, tolerance=TOLERANCE)
    assert not check.passed
    assert "run failed" in check.detail or "cannot open" in check.detail


def test_outputs_that_rounding_makes_zero_are_compared_without_it() -> None:
    other = WEIGHT.copy()
    other[0] += 1e-2
    small = [np.float32(1e-3) * weight for weight in (WEIGHT, other)]
    assert prove(rounded(small[0]), rounded(small[0].copy()), SIZES, tolerance=TOLERANCE).passed
    assert not prove(rounded(small[0]), rounded(small[1]), SIZES, tolerance=TOLERANCE).passed


SWITCHED = """h = MatMul(x, w) q = QuantizeLinear(h, s, z) big = ReduceMax<keepdims=0>(x)
    flag = Greater(big, limit)
    y = If(flag) <then_branch = yes () => (float[N,3] o) { d = DequantizeLinear(q, s, z) o = Tanh(d) },
                  else_branch = no () => (float[N,3] o) {
                      e = DequantizeLinear(q, s, z) k = MatMul(e, v) r = QuantizeLinear(k, s, z)
                      o = DequantizeLinear(r, s, z) }>"""


def switched(weight: np.ndarray, in_branch: np.ndarray) -> ir.Model:
    """A quantized model whose condition never leads into one branch."""
    constants = {"w": weight, "v": in_branch, "s": np.float32(0.25), "z": np.uint8(128)}
    model = graph(SWITCHED, inputs="float[N,4] x", constants={**constants, "limit": np.float32(-100)})
    number_nodes(model)
    return model


def test_branches_of_a_quantized_model_are_run_with_and_without_rounding() -> None:
    inner = np.random.default_rng(1).standard_normal((3, 3)).astype(np.float32)
    check = prove(switched(WEIGHT, inner), switched(WEIGHT.copy(), inner.copy()), SIZES, tolerance=TOLERANCE)
    assert check.passed
    assert "without the rounding" in check.detail
    assert check.detail.endswith("both branches of 1 If")

    other, sizes = WEIGHT * np.float32(1 + 3e-6), [{"x": (50_000, 4)}]
    check = prove(switched(WEIGHT, inner), switched(other, inner), sizes, tolerance=TOLERANCE)
    assert check.passed, check.detail
    before, after = re.findall(r"\d\.\de[+-]\d\d", check.detail)[:2]
    assert float(before) < 1e-5
    assert float(after) > 1e-3, "the test must hit the middle between two steps"

    wrong = inner.copy()
    wrong[1, 2] += 0.1
    assert not prove(switched(WEIGHT, inner), switched(WEIGHT, wrong), SIZES, tolerance=TOLERANCE).passed


def test_an_original_that_overflows_is_proved_on_smaller_inputs() -> None:
    huge = np.full((4, 3), 3e38, np.float32)
    assert prove(linear(huge), linear(huge.copy()), SIZES, tolerance=TOLERANCE).passed
    other = huge.copy()
    other[0, 0] = 0
    assert not prove(linear(huge), linear(other), SIZES, tolerance=TOLERANCE).passed


def test_smaller_inputs_do_not_help_against_weights_that_are_not_finite() -> None:
    odd = WEIGHT.copy()
    odd[:] = NAN
    check = prove(linear(odd), linear(odd.copy()), SIZES, tolerance=TOLERANCE)
    assert not check.passed
    assert "or nowhere" in check.detail
