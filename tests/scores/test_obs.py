"""Against optima that are found by solving, and by trying every support."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from onnxprune.cholesky import damped_hessian
from onnxprune.patterns import Pattern, count_bad_blocks, count_bad_runs, parse_pattern
from onnxprune.scores import obs
from onnxprune.scores.obs import PrunedMatrix, prune_matrix
from onnxprune.scores.refinement import MOST_STEPS, affordable_steps, refine

ROWS = 60


def problem(outputs: int, inputs: int, seed: int = 0, dtype: Any = np.float64) -> tuple[Any, Any]:
    """Return weights and correlated inputs [rows, inputs]."""
    random = np.random.default_rng(seed)
    mixing = np.eye(inputs) + 0.7 * random.normal(size=(inputs, inputs))
    return random.normal(size=(outputs, inputs)).astype(dtype), random.normal(size=(ROWS, inputs)) @ mixing


def prune(weights: Any, x: Any, pattern: str, share: float = 0.5, **options: Any) -> PrunedMatrix:
    """The sweep alone, if nothing else is asked for."""
    return prune_matrix(weights, x.T @ x, len(x), parse_pattern(pattern), share, **{"steps": 0, **options})


def best(weights: Any, hessian: Any, free: Any, gone: Any) -> tuple[Any, float]:
    """Solve for the free weights of a row that make up for those that go; the others stay."""
    change = np.where(gone, -weights, 0.0)
    free = np.flatnonzero(free & ~gone)
    if len(free):
        change[free] = np.linalg.solve(hessian[np.ix_(free, free)], -hessian[free] @ change)
    return weights + change, float(change @ hessian @ change)


def settled_in_turn(weights: Any, hessian: Any, kept: Any, width: int) -> Any:
    """Apply the definition: segment by segment, those behind and inside are free, those before are not."""
    result = weights.astype(np.float64)
    columns = np.arange(weights.shape[1])
    for start in range(0, weights.shape[1], width):
        inside = (columns >= start) & (columns < start + width)
        for row in range(len(result)):
            free = columns >= start
            result[row], _ = best(result[row], hessian, free, inside & ~kept[row])
    return result


# --- updates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("band", [3, 128])
@pytest.mark.parametrize(
    ("pattern", "width", "taps"),
    [("unstructured", 1, 1), ("2:4", 4, 1), ("1:2", 2, 1), ("block:2x3", 3, 1), ("3:6", 6, 1)],
)
def test_weights_are_what_solving_segment_by_segment_gives(
    monkeypatch: pytest.MonkeyPatch, pattern: str, width: int, taps: int, band: int
) -> None:
    monkeypatch.setattr(obs, "BAND", band)
    weights, x = problem(6, 12)
    before = weights.copy()
    found = prune(weights, x, pattern, taps=taps)
    hessian, _ = damped_hessian(x.T @ x, ROWS)
    assert np.array_equal(found.kept, found.weights != 0)
    expected = settled_in_turn(weights, hessian, found.kept, width)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-8, atol=1e-10)
    assert np.array_equal(weights, before)
    change = found.weights - weights
    assert found.error == pytest.approx(np.einsum("oi,ij,oj->", change, hessian, change) / 2, rel=1e-9)


def test_one_weight_removed_is_the_optimal_brain_surgeon() -> None:
    """w - w_q / [H^-1]_qq * H^-1[:, q], at a cost of w_q^2 / 2 [H^-1]_qq (Hassibi & Stork 1993, eq. 5)."""
    weights, x = problem(1, 6)
    weights[0, 0] = 1e-3  # it goes: no other column is settled before it
    found = prune(weights, x, "unstructured", share=1 / 6)
    inverse = np.linalg.inv(damped_hessian(x.T @ x, ROWS)[0])
    assert found.kept.tolist() == [[False] + [True] * 5]
    expected = weights - weights[0, 0] / inverse[0, 0] * inverse[:, 0]
    np.testing.assert_allclose(found.weights[:, 1:], expected[:, 1:], rtol=1e-9)
    assert found.error == pytest.approx(weights[0, 0] ** 2 / inverse[0, 0] / 2)


def test_float32_is_close_to_float64() -> None:
    weights, x = problem(40, 300)
    exact = prune(weights, x, "unstructured")
    single = prune(weights.astype(np.float32), x, "unstructured")
    assert single.weights.dtype == np.float32
    assert np.mean(exact.kept == single.kept) > 0.999
    assert single.error == pytest.approx(exact.error, rel=1e-3)


@pytest.mark.parametrize("pattern", ["unstructured", "block:2x2"])
def test_nothing_removed_changes_nothing(pattern: str) -> None:
    weights, x = problem(5, 9, dtype=np.float32)
    found = prune(weights, x, pattern, share=0.0)
    assert found.kept.all()
    assert np.array_equal(found.weights, weights)
    assert found.error == 0


def test_outputs_stay_closer_than_with_the_same_zeros_alone() -> None:
    weights, x = problem(8, 32)
    for pattern in ("unstructured", "2:4", "block:4x4"):
        found = prune(weights, x, pattern)
        masked = np.square(x @ (weights * found.kept - weights).T).mean()
        assert np.square(x @ (found.weights - weights).T).mean() < masked


@pytest.mark.parametrize(("pattern", "taps"), [("unstructured", 1), ("2:4", 2), ("block:3x2", 1)])
def test_refined_weights_are_the_best_on_their_support(pattern: str, taps: int) -> None:
    weights, x = problem(6, 8)
    hessian, _ = damped_hessian(x.T @ x, ROWS)
    swept, found = prune(weights, x, pattern, taps=taps), prune(weights, x, pattern, taps=taps, steps=None)
    assert np.array_equal(found.kept, swept.kept)
    everything = np.ones(8, dtype=bool)
    solved = [best(row, hessian, everything, ~kept) for row, kept in zip(weights, found.kept, strict=True)]
    np.testing.assert_allclose(found.weights, [row for row, _ in solved], rtol=1e-5, atol=1e-8)
    assert found.error == pytest.approx(sum(cost for _, cost in solved) / 2)
    assert found.error < swept.error * (1 + 1e-12)


def test_refinement_never_makes_it_worse() -> None:
    """Conjugate gradients that overflow, as single precision may, leave what was there."""
    weights, x = problem(3, 6, dtype=np.float32)
    swept = prune(weights, x, "2:3")
    hessian = damped_hessian(x.T @ x, ROWS)[0].astype(np.float32)
    with np.errstate(all="ignore"):
        kept_as_is, error = refine(weights, swept.weights, swept.kept, hessian * np.float32(1e38), 5)
    assert kept_as_is is swept.weights
    assert not error < 0


def test_only_what_is_worth_its_time_is_refined() -> None:
    assert affordable_steps(64, 576) == MOST_STEPS
    assert 0 < affordable_steps(2048, 2048) < MOST_STEPS
    assert affordable_steps(4096, 4096) == 0


# --- choices ------------------------------------------------------------------------------------------------


def test_unstructured_drops_the_lowest_costs_of_a_band() -> None:
    weights, x = problem(5, 7)
    hessian, _ = damped_hessian(x.T @ x, ROWS)
    columns = np.arange(7)
    costs = np.array(
        [[best(row, hessian, columns > j, columns == j)[1] for j in range(7)] for row in weights]
    )
    for removed in (1, 8, 30):
        found = prune(weights, x, "unstructured", share=removed / 35)
        lowest = np.zeros(35, dtype=bool)
        lowest[np.argsort(costs, axis=None)[:removed]] = True
        assert np.array_equal(~found.kept, lowest.reshape(5, 7))


@pytest.mark.parametrize(("keep", "run"), [(2, 4), (1, 4), (3, 4), (1, 2), (4, 8)])
def test_a_run_gets_the_best_of_all_supports(keep: int, run: int) -> None:
    """The first run: all that lies behind is free, so the best support is found by trying each."""
    weights, x = problem(6, 2 * run)
    hessian, _ = damped_hessian(x.T @ x, ROWS)
    found = prune(weights, x, f"{keep}:{run}")
    for row, kept in zip(weights, found.kept, strict=True):
        tried = {}
        for stays in combinations(range(run), keep):
            gone = np.zeros(2 * run, dtype=bool)
            gone[:run] = True
            gone[list(stays)] = False
            tried[stays] = best(row, hessian, np.ones(2 * run, dtype=bool), gone)[1]
        assert tuple(np.flatnonzero(kept[:run])) == min(tried, key=lambda stays: tried[stays])


@pytest.mark.parametrize(("pattern", "inputs"), [("2:4", 24), ("8:16", 32), ("3:5", 15), ("1:200", 400)])
def test_runs_hold(pattern: str, inputs: int) -> None:
    weights, x = problem(7, inputs, dtype=np.float32)
    wanted = parse_pattern(pattern)
    found = prune(weights, x, pattern)
    assert count_bad_runs(found.kept, wanted, 1) == 0
    assert (found.kept.reshape(7, -1, wanted.run).sum(axis=-1) == wanted.keep).all()
    assert not found.weights[~found.kept].any()


def test_too_many_choices_fall_back_to_single_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, x = problem(9, 16)
    monkeypatch.setattr(obs, "_MOST_CHOICES", 5)
    found = prune(weights, x, "2:4")
    hessian, _ = damped_hessian(x.T @ x, ROWS)
    assert count_bad_runs(found.kept, Pattern("N:M", keep=2, run=4), 1) == 0
    expected = settled_in_turn(weights, hessian, found.kept, 4)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-8, atol=1e-10)


def test_blocks_that_cost_least_go() -> None:
    weights, x = problem(6, 6)
    hessian, _ = damped_hessian(x.T @ x, ROWS)
    found = prune(weights, x, "block:2x3", share=1 / 6)
    columns = np.arange(6)
    costs = {}
    for top, left in [(r, c) for r in (0, 2, 4) for c in (0, 3)]:
        gone = (columns >= left) & (columns < left + 3)
        costs[top, left] = sum(best(weights[r], hessian, columns >= left, gone)[1] for r in (top, top + 1))
    top, left = min(costs, key=lambda key: costs[key])
    expected = np.ones((6, 6), dtype=bool)
    expected[top : top + 2, left : left + 3] = False
    assert np.array_equal(found.kept, expected)


@pytest.mark.parametrize(("outputs", "channels", "taps"), [(8, 8, 1), (7, 10, 1), (6, 5, 4), (5, 300, 1)])
def test_blocks_hold_and_nearly_the_share_goes(outputs: int, channels: int, taps: int) -> None:
    weights, x = problem(outputs, channels * taps, dtype=np.float32)
    found = prune(weights, x, "block:4x4", taps=taps)
    kept = found.kept.reshape(outputs, channels, taps)
    assert count_bad_blocks(kept, parse_pattern("block:4x4"), 0, 1) == 0
    removed = np.count_nonzero(~found.kept)
    assert weights.size / 2 - 16 <= removed <= weights.size / 2


@pytest.mark.parametrize("share", [0.1, 0.5, 0.73])
def test_exactly_the_share_goes(share: float) -> None:
    weights, x = problem(3, 301)
    found = prune(weights, x, "unstructured", share=share)
    assert np.count_nonzero(~found.kept) == round(share * weights.size)


# --- inputs -------------------------------------------------------------------------------------------------


def test_runs_of_a_kernel_go_along_its_channels() -> None:
    """Column = channel * taps + tap; the same weights with their columns by tap first give the same."""
    weights, x = problem(5, 8 * 3)
    found = prune(weights, x, "2:4", taps=3)
    assert count_bad_runs(found.kept.reshape(5, 8, 3), parse_pattern("2:4"), 1) == 0
    by_tap = np.arange(24).reshape(8, 3).T.reshape(-1)
    plain = prune(weights[:, by_tap], x[:, by_tap], "2:4")
    assert np.array_equal(plain.kept, found.kept[:, by_tap])
    np.testing.assert_allclose(plain.weights, found.weights[:, by_tap])


@pytest.mark.parametrize("taps", [1, 2])
def test_weights_of_dead_inputs_cost_least_and_stay_as_they_are(taps: int) -> None:
    weights, x = problem(4, 8)
    weights += np.sign(weights)
    dead = [2, 5]
    weights[:, dead] -= np.sign(weights[:, dead])
    weights[:, dead] /= np.abs(weights[:, dead]).max()
    x[:, dead] = 0
    found = prune(weights, x, "unstructured", share=6 / 32, taps=taps)
    assert found.damping.dead.tolist() == dead
    gone = weights[:, dead][~found.kept[:, dead]]
    stay = weights[:, dead][found.kept[:, dead]]
    assert len(gone) == 6
    assert np.abs(gone).max() < np.abs(stay).min()
    assert np.array_equal(found.weights[found.kept], weights[found.kept])


def test_inputs_that_are_all_dead_leave_the_magnitudes() -> None:
    weights, x = problem(4, 8)
    found = prune(weights, np.zeros_like(x), "unstructured")
    assert np.abs(weights[~found.kept]).max() < np.abs(weights[found.kept]).min()
    assert np.array_equal(found.weights, weights * found.kept)


def test_channels_that_are_no_multiple_of_a_run() -> None:
    weights, x = problem(2, 6)
    with pytest.raises(ValueError, match="multiple"):
        prune(weights, x, "2:4")
