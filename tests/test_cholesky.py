import numpy as np
import pytest

from onnxprune.cholesky import (
    DAMPING,
    NotPositiveDefinite,
    damped_hessian,
    factorize,
    inverse_factor,
)
from onnxprune.errors import DataError


def moments(rows=200, inputs=7, dead=(), seed=0):
    inputs_of_rows = np.random.default_rng(seed).normal(size=(rows, inputs)) * np.linspace(0.1, 3, inputs)
    inputs_of_rows[:, list(dead)] = 0
    return inputs_of_rows.T @ inputs_of_rows


def written_out(second, count, damping):
    """The definition, entry by entry."""
    size = len(second)
    hessian = np.array([[2 / count * second[i, j] for j in range(size)] for i in range(size)])
    dead = [i for i in range(size) if hessian[i, i] == 0]
    mean = sum(hessian[i, i] for i in range(size)) / (size - len(dead))
    for i in range(size):
        hessian[i, i] = 1.0 if i in dead else hessian[i, i] + damping * mean
    return hessian, dead


@pytest.mark.parametrize("dead", [(), (2,), (0, 6)])
@pytest.mark.parametrize("damping", [DAMPING, 0.3])
def test_hessian_and_factors(dead, damping):
    second = moments(dead=dead)
    before = second.copy()
    expected, dead_inputs = written_out(second, 200, damping)
    inverse = np.linalg.inv(expected)

    hessian, found = damped_hessian(second, 200, damping=damping)
    np.testing.assert_allclose(hessian, expected, rtol=1e-12)
    assert found.dtype == np.int32
    assert found.tolist() == dead_inputs == list(dead)

    factor = factorize(second, 200, damping=damping)
    assert not np.triu(factor.lower, 1).any()
    np.testing.assert_allclose(factor.lower @ factor.lower.T, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(factor.inverse(), inverse, rtol=1e-10, atol=1e-12)
    right = np.random.default_rng(1).normal(size=(7, 3))
    np.testing.assert_allclose(factor.solve(right), inverse @ right, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(factor.inverse(overwrite=True), inverse, rtol=1e-10, atol=1e-12)

    upper = inverse_factor(second, 200, damping=damping)
    assert not np.tril(upper.upper, -1).any()
    assert (np.diagonal(upper.upper) > 0).all()
    np.testing.assert_allclose(upper.upper.T @ upper.upper, inverse, rtol=1e-10, atol=1e-12)
    assert upper.damping.dead.tolist() == factor.damping.dead.tolist() == list(dead)
    assert upper.damping.warning is None
    assert np.array_equal(second, before)


def test_inverse_fills_both_triangles_across_tiles(monkeypatch):
    monkeypatch.setattr("onnxprune.cholesky._TILE", 3)
    second = moments(inputs=8)
    inverse = factorize(second, 200).inverse()
    np.testing.assert_allclose(inverse, np.linalg.inv(damped_hessian(second, 200)[0]), rtol=1e-9, atol=1e-12)
    assert np.array_equal(inverse, inverse.T)


def test_inputs_that_are_all_dead_give_the_identity():
    second = np.zeros((3, 3))
    assert np.array_equal(inverse_factor(second, 5).upper, np.eye(3))
    assert inverse_factor(second, 5).damping.dead.tolist() == [0, 1, 2]


def test_dead_inputs_do_not_change_the_damping_of_others():
    """The numbers of dead inputs have no scale: with small inputs a mean over them would be all there is."""
    small = moments(dead=(3,)) * 1e-12
    alive = [i for i in range(7) if i != 3]
    expected, _ = damped_hessian(small[np.ix_(alive, alive)], 200)
    found, _ = damped_hessian(small, 200)
    np.testing.assert_allclose(found[np.ix_(alive, alive)], expected, rtol=1e-12)


@pytest.mark.parametrize("make", [factorize, inverse_factor])
def test_damping_is_raised_until_positive_definite(make):
    second = np.array([[1.0, 2.0], [2.0, 1.0]])  # eigenvalues 3 and -1: no damping up to 1 helps
    with pytest.warns(NotPositiveDefinite, match=r"conv1.*damping 0.01; 10 was used"):
        found = make(second, 1, layer="conv1")
    assert (found.damping.asked, found.damping.used) == (0.01, 10.0)
    assert "not positive definite" in found.damping.warning


def test_no_damping_is_raised_too():
    second = np.ones((2, 2))  # semidefinite
    with pytest.warns(NotPositiveDefinite):
        found = factorize(second, 1, damping=0.0)
    assert 0 < found.damping.used < 1e-4


def test_damaged_moments_are_refused():
    with pytest.raises(DataError, match=r"conv1.*NaN"):
        factorize(np.full((2, 2), np.nan), 1, layer="conv1")
    with pytest.raises(DataError, match=r"conv1.*damaged"):
        inverse_factor(np.array([[1.0, 1e9], [1e9, 1.0]]), 1, layer="conv1")
