"""Least squares on the support of each output: exactly, and by conjugate gradients."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import lstsq

from onnxprune.cholesky import factorize
from onnxprune.recover.cross_moments import CrossMoments
from onnxprune.recover.masked import exact_is_cheaper, solve_by_gradients, solve_exactly
from onnxprune.recover.solve import reconstruct

RANDOM = np.random.default_rng(4)


def problem(rows: int, inputs: int, outputs: int, keep: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mixing = RANDOM.standard_normal((inputs, inputs))
    x = RANDOM.standard_normal((rows, inputs)) @ mixing
    residual = x @ RANDOM.standard_normal((inputs, outputs)) + RANDOM.standard_normal((rows, outputs))
    return x, residual, RANDOM.random((inputs, outputs)) < keep


def least_squares(x: np.ndarray, residual: np.ndarray, support: np.ndarray) -> np.ndarray:
    expected = np.zeros(support.shape)
    for output, places in enumerate(support.T):
        if places.any():
            expected[places, output] = lstsq(x[:, places], residual[:, output])[0]
    return expected


def test_each_output_is_solved_on_its_support() -> None:
    x, residual, support = problem(300, 20, 9, 0.5)
    support[:, 3] = support[:, 5]  # solved together
    support[:, 4] = False
    found = solve_exactly(x.T @ x, x.T @ residual, support)
    np.testing.assert_allclose(found, least_squares(x, residual, support), rtol=1e-6, atol=1e-8)
    assert not found[~support].any()


def test_with_an_intercept_it_is_the_least_squares_solution() -> None:
    x, residual, support = problem(500, 16, 6, 0.6)
    x += 3
    rows = CrossMoments(1, 16, 6)
    rows.add_rows(
        x[None].astype(np.float32), residual[None].astype(np.float32), residual[None].astype(np.float32)
    )
    found = reconstruct(rows, rows, np.ones((1, 6)), support[None], ridges=[1e-9])
    with_one = np.concatenate([x, np.ones((500, 1))], axis=1)
    always = np.concatenate([support, np.ones((1, 6), bool)])
    expected = least_squares(with_one, residual, always)
    assert found.change is not None
    np.testing.assert_allclose(found.change[0], expected[:-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.intercept[0], expected[-1], rtol=1e-3, atol=1e-3)
    assert not found.change[0][~support].any()


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_conjugate_gradients_reach_nearly_all_of_the_best_reduction(keep: float) -> None:
    x, residual, support = problem(400, 96, 40, keep)
    support[:, 0] = False
    factor = factorize(x.T @ x, 2, damping=1e-3)  # H is the matrix itself, damped
    hessian = factor.lower @ factor.lower.T
    right = x.T @ residual
    found = solve_by_gradients(hessian, factor, right, support)
    best = solve_exactly(hessian, right, support)

    def reduction(change: np.ndarray) -> float:
        return float(2 * (change * right).sum() - (change * (hessian @ change)).sum())

    assert not found[~support].any()
    assert reduction(found) >= reduction(best) * (1 - 1e-3)
    closer = solve_by_gradients(hessian, factor, right, support, tolerance=1e-5)
    np.testing.assert_allclose(closer, best, rtol=1e-2, atol=1e-3 * np.abs(best).max())


def test_the_ridge_of_many_masked_outputs_is_chosen_on_some() -> None:
    x, residual, support = problem(300, 20, 200, 0.5)
    rows = CrossMoments(1, 20, 200)
    rows.add_rows(*(array[None].astype(np.float32) for array in (x, residual, residual)))
    found = reconstruct(rows, rows, np.ones((1, 200)), support[None])
    assert found.change is not None
    assert found.change.shape == (1, 20, 200)
    assert found.ridge == 1e-6
    np.testing.assert_allclose(
        found.change[0], reconstruct(rows, rows, np.ones((1, 200)), support[None], [1e-6]).change[0]
    )


def test_wide_layers_are_left_to_conjugate_gradients() -> None:
    assert exact_is_cheaper(RANDOM.random((256, 64)) < 0.5)
    assert not exact_is_cheaper(RANDOM.random((4096, 8)) < 0.5)
    shared = np.repeat(RANDOM.random((4096, 1)) < 0.5, 4096, axis=1)
    assert exact_is_cheaper(shared)
