"""Predicted times: exact where measured, near elsewhere, and relative to what was timed whole."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.allocate.latency import LatencyModel, PartTimes


def conv_ms(inner: int, outer: int) -> float:
    """A made-up layer: a start, its inputs and outputs, its multiplications."""
    return 0.02 + 0.001 * inner + 0.002 * outer + 0.0001 * inner * outer


POINTS = ((1, 1), (0.5, 0.5), (0.25, 0.25), (0.5, 1), (1, 0.5))


def part(groups=("a", "b"), whole=(64, 128)) -> PartTimes:
    times = PartTimes("conv", groups, np.array(whole), np.eye(2), np.zeros(2))
    for inner, outer in POINTS:
        point = round(inner * whole[0]), round(outer * whole[1])
        times.add(point, conv_ms(*point))
    return times


def test_a_prediction_is_exact_where_it_was_measured():
    times = part()
    times.add((48, 80), 7.0)  # far from what the others say
    assert times.one({"a": 48, "b": 80}) == pytest.approx(7.0, rel=1e-3)


def test_a_prediction_follows_products_of_sizes():
    times = part()
    rows = np.array([[a, b] for a in range(8, 65, 8) for b in range(16, 129, 16)])
    expected = np.array([conv_ms(a, b) for a, b in rows])
    assert np.abs(times.many(rows) / expected - 1).max() < 0.02


def test_a_new_measurement_replaces_what_was_known():
    times = part()
    before = times.one({"a": 40, "b": 96})
    times.add((40, 96), before * 2)
    assert times.one({"a": 40, "b": 96}) == pytest.approx(before * 2, rel=1e-3)


def test_sizes_that_groups_share_are_seen_through_their_sum():
    """A layer that reads eight groups side by side: what counts is how many channels that makes in all."""
    names = tuple("abcdefgh")
    times = PartTimes("wide", names, np.full(8, 32), np.ones((1, 8)), np.array([16.0]))
    for count in (32, 16, 8):
        times.add([count] * 8, 0.01 * (8 * count + 16))
    assert times.one({"a": 8}) == pytest.approx(0.01 * (7 * 32 + 8 + 16), rel=0.02)


def model() -> LatencyModel:
    return LatencyModel([part(), part(("b", "c"), (128, 256))], np.array([2.0, 3.0]), 10.0)


def test_the_whole_is_one():
    assert model().share({}) == pytest.approx(1.0)


def test_parts_shrink_and_the_rest_stays():
    found = model().share({"a": 32, "b": 64})
    first = conv_ms(32, 64) / conv_ms(64, 128)
    second = conv_ms(64, 256) / conv_ms(128, 256)
    assert found == pytest.approx((5 + 2 * first + 3 * second) / 10, rel=1e-3)


def test_along_is_share_for_each_option():
    latency = model()
    counts = {"a": 32, "b": 96, "c": 64}
    options = [16, 48, 64]
    singly = [latency.share({**counts, "b": option}) for option in options]
    assert latency.along(counts, "b", options) == pytest.approx(singly)
    assert latency.along(counts, "nobody", [1, 2]) == pytest.approx([latency.share(counts)] * 2)


def test_after_an_anchor_the_prediction_there_is_what_was_measured():
    latency = model()
    counts = {"a": 32, "b": 64, "c": 64}
    latency.anchor(counts, np.array([0.9, 1.4]), 6.0)
    assert latency.share(counts) == pytest.approx(0.6)
    assert latency.rest_ms == pytest.approx(3.7)
    assert latency.share({**counts, "a": 16}) < 0.6


def test_part_shares_add_up_to_what_is_not_rest():
    latency = model()
    counts = {"a": 32}
    assert latency.part_shares(counts).sum() + latency.rest_ms / 10 == pytest.approx(latency.share(counts))


def test_a_part_that_was_timed_once_is_taken_to_follow_its_multiplications():
    times = PartTimes("conv", ("a", "b"), np.array([64, 128]), np.eye(2), np.zeros(2))
    times.add((64, 128), 8.0)
    assert times.one({}) == pytest.approx(8.0)
    assert times.one({"a": 32, "b": 64}) == pytest.approx(2.0)
