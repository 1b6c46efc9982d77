"""The closed form against an independent least-squares solver, ridge by ridge and output by output."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import lstsq

from onnxprune.recover.cross_moments import CrossMoments
from onnxprune.recover.solve import match, reconstruct, relative_error, shift

RANDOM = np.random.default_rng(3)
ROWS, INPUTS, OUTPUTS = 400, 12, 7


def data(groups: int = 1, rows: int = ROWS, noise: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs with a large mean, and a residual that they explain in part."""
    mixing = RANDOM.standard_normal((groups, INPUTS, INPUTS))
    x = RANDOM.standard_normal((groups, rows, INPUTS)) @ mixing + 5
    residual = x @ RANDOM.standard_normal((groups, INPUTS, OUTPUTS)) + 2
    residual += noise * RANDOM.standard_normal(residual.shape)
    return x.astype(np.float32), residual.astype(np.float32)


def moments(x: np.ndarray, residual: np.ndarray) -> CrossMoments:
    found = CrossMoments(x.shape[0], x.shape[2], residual.shape[2])
    for start in range(0, x.shape[1], 100):
        part = slice(start, start + 100)
        found.add_rows(x[:, part], residual[:, part], residual[:, part])
    return found


def ones(groups: int = 1) -> np.ndarray:
    return np.ones((groups, OUTPUTS))


@pytest.mark.parametrize("groups", [1, 3])
def test_it_is_the_least_squares_solution_with_an_intercept(groups: int) -> None:
    x, residual = data(groups)
    rows = moments(x, residual)
    found = reconstruct(rows, rows, ones(groups), ridges=[1e-10])
    assert found.change is not None
    for group in range(groups):
        with_one = np.concatenate([x[group], np.ones((ROWS, 1))], axis=1).astype(np.float64)
        expected, *_ = lstsq(with_one, residual[group].astype(np.float64))
        np.testing.assert_allclose(found.change[group], expected[:-1], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.intercept[group], expected[-1], rtol=1e-3, atol=1e-3)


def test_the_ridge_holds_back_the_change_and_not_the_intercept() -> None:
    x, residual = data()
    rows = moments(x, residual)
    ridge = 0.1
    found = reconstruct(rows, rows, ones(), ridges=[ridge])
    around = x[0].astype(np.float64) - x[0].mean(axis=0, dtype=np.float64)
    second = around.T @ around
    damped = second + ridge * np.diag(second).mean() * np.eye(INPUTS)
    expected = np.linalg.solve(damped, around.T @ residual[0])
    assert found.change is not None
    np.testing.assert_allclose(found.change[0], expected, rtol=1e-3, atol=1e-4)
    left = residual[0] - x[0] @ found.change[0] - found.intercept[0]
    np.testing.assert_allclose(left.mean(axis=0), 0, atol=1e-3)


def test_errors_are_those_of_the_rows() -> None:
    x, residual = data(2)
    rows = moments(x, residual)
    change = RANDOM.standard_normal((2, INPUTS, OUTPUTS))
    intercept = RANDOM.standard_normal((2, OUTPUTS))
    left = residual - np.einsum("grn,gnm->grm", x, change) - intercept[:, None]
    np.testing.assert_allclose(rows.errors(change, intercept), (left.astype(float) ** 2).sum(1), rtol=1e-4)
    np.testing.assert_allclose(
        rows.errors(None, 0 * intercept), (residual.astype(float) ** 2).sum(1), rtol=1e-4
    )


def test_nothing_missing_changes_nothing() -> None:
    x, residual = data()
    rows = CrossMoments(1, INPUTS, OUTPUTS)
    rows.add_rows(x, 0 * residual, residual)
    found = reconstruct(rows, rows, ones())
    assert found.change is None
    assert not found.intercept.any()
    assert not found.helps


def test_rounding_is_not_repaired() -> None:
    x, target = data()
    rows = CrossMoments(1, INPUTS, OUTPUTS)
    rows.add_rows(x, 1e-7 * target, target)
    assert reconstruct(rows, rows, ones()).change is None
    more = CrossMoments(1, INPUTS, OUTPUTS)
    more.add_rows(x, 1e-4 * target, target)
    assert reconstruct(more, more, ones()).change is not None


def test_the_ridge_is_the_one_that_held_out_rows_like_best() -> None:
    """With few rows and much noise, a small ridge fits the noise."""
    x, residual = data(rows=300, noise=30.0)
    few, rest = moments(x[:, :20], residual[:, :20]), moments(x[:, 20:], residual[:, 20:])
    found = reconstruct(few, rest, ones())
    tried = {ridge: reconstruct(few, rest, ones(), ridges=[ridge]) for ridge in (1.0, 0.1, 1e-2, 1e-4, 1e-6)}
    assert found.after <= min(one.after for one in tried.values())
    assert found.ridge is not None
    assert found.ridge > 1e-6


def test_a_change_that_only_fits_noise_is_refused() -> None:
    x, _ = data(rows=30)
    noise = RANDOM.standard_normal((1, 30, OUTPUTS)).astype(np.float32)
    noise -= noise[:, :15].mean(axis=1, keepdims=True)
    held = noise[:, 15:] - noise[:, 15:].mean(axis=1, keepdims=True)
    found = reconstruct(moments(x[:, :15], noise[:, :15]), moments(x[:, 15:], held), ones(), ridges=[1e-8])
    assert not found.helps
    assert found.change is None
    assert found.after == found.before


def test_an_output_that_does_not_count_is_not_heard() -> None:
    x, residual = data()
    rows = moments(x, residual)
    weight = ones()
    weight[0, 1:] = 0
    alone = rows.of_outputs(np.array([0]))
    change, intercept = RANDOM.standard_normal((1, INPUTS, OUTPUTS)), np.zeros((1, OUTPUTS))
    expected = relative_error(alone, change[:, :, :1], intercept[:, :1], weight[:, :1])
    assert relative_error(rows, change, intercept, weight) == pytest.approx(expected)


def test_the_intercept_alone_is_the_mean() -> None:
    x, residual = data()
    rows = moments(x, residual)
    found = shift(rows, rows, ones())
    np.testing.assert_allclose(found.intercept[0], residual[0].mean(axis=0), rtol=1e-5)
    assert found.change is None
    assert found.helps


def test_mean_and_deviation_are_matched() -> None:
    x, _ = data()
    matrix = RANDOM.standard_normal((1, OUTPUTS, INPUTS))
    bias = RANDOM.standard_normal(OUTPUTS)
    given = (x[0] @ matrix[0].T + bias).astype(np.float32)
    wanted = (given * RANDOM.uniform(0.5, 2, OUTPUTS) + 3).astype(np.float32)[:, ::-1]
    rows = CrossMoments(1, INPUTS, OUTPUTS, squares=False)
    rows.add_rows(x, given[None], wanted[None])
    found = match(rows, rows, ones(), matrix)
    assert found.change is not None
    result = x[0] @ (matrix[0].T + found.change[0]) + bias + found.intercept[0]
    np.testing.assert_allclose(result.mean(axis=0), wanted.mean(axis=0), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(result.std(axis=0), wanted.std(axis=0), rtol=1e-3)
    assert found.after == pytest.approx(0, abs=1e-6)
    assert found.before > 0.01


def test_a_constant_result_is_not_stretched() -> None:
    x, residual = data()
    rows = CrossMoments(1, INPUTS, OUTPUTS, squares=False)
    rows.add_rows(x, np.ones_like(residual), residual)
    found = match(rows, rows, ones(), np.ones((1, OUTPUTS, INPUTS)))
    assert found.change is not None
    assert not found.change.any()
