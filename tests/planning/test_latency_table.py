"""Which points are timed, and the alignment that they show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from onnxprune.allocate.latency import PartTimes
from onnxprune.planning.latency.table import Table
from onnxprune.types import ChannelGroup

Clock = Callable[[int, int], float]


def linear(inner: int, outer: int) -> float:
    return 0.01 + inner * outer * 1e-4


def in_blocks(inner: int, outer: int) -> float:
    """Blocks of 16 channels."""
    return linear(math.ceil(inner / 16) * 16, math.ceil(outer / 16) * 16)


def off_a_cliff(inner: int, outer: int) -> float:
    """Inputs that are no multiple of four take another, slower way."""
    return linear(inner, outer) * (1.7 if inner % 4 else 1.0)


def table_for(
    clock: Clock, *, size: int = 64, kind="channels", points: int | None = None
) -> tuple[Table, list]:
    """A chain of two layers: a -> b -> c."""
    groups = {name: ChannelGroup(name, kind, size, ()) for name in "abc"}
    parts = [PartTimes(name, tuple(name), np.full(2, size), np.eye(2), np.zeros(2)) for name in ("ab", "bc")]
    asked: list[tuple[int, dict[str, int]]] = []

    def time_part(number: int, kept: Mapping[str, int]) -> float:
        asked.append((number, dict(kept)))
        return clock(*(kept.get(name, size) for name in parts[number].groups))

    for number, part in enumerate(parts):
        part.add(part.whole, time_part(number, {}))
    in_context = np.array([clock(size, size)] * 2)
    lowest = {name: math.ceil(size / 10) for name in groups}
    left = [points]

    def has_time() -> bool:
        if left[0] is None:
            return True
        left[0] -= 1
        return left[0] >= 0

    return Table(parts, in_context, groups, lowest, time_part, has_time), asked


def test_a_staircase_gives_its_step():
    table, _ = table_for(in_blocks)
    table.probe()
    assert set(table.steps.values()) == {16}


def test_what_is_read_off_a_cliff_keeps_clear_of_it():
    table, _ = table_for(off_a_cliff)
    table.probe()
    assert table.steps == {"a": 4, "b": 4, "c": 2}  # nobody reads c


@pytest.mark.parametrize(("size", "step"), [(24, 1), (64, 2), (100, 4), (1024, 32), (2048, 64)])
def test_a_straight_line_gives_the_finest_step_that_is_offered(size, step):
    table, _ = table_for(linear, size=size)
    table.probe()
    assert set(table.steps.values()) == {step}


def test_heads_go_one_by_one_whatever_they_take():
    table, asked = table_for(in_blocks, size=12, kind="heads")
    before = len(asked)
    table.probe()
    assert set(table.steps.values()) == {1}
    assert len(asked) == before


def test_nothing_is_said_of_groups_that_save_nothing():
    table, _ = table_for(lambda *_: 1.0)
    table.probe()
    assert table.steps == {}


def test_points_lie_on_the_grid_and_above_the_floor():
    table, asked = table_for(in_blocks)
    table.probe()
    del asked[:]
    table.fill()
    assert asked
    for _, kept in asked:
        assert all(
            count == 64 or (count % table.steps[name] == 0 and count >= 7) for name, count in kept.items()
        )


@pytest.mark.parametrize("counts", [{"a": 48, "b": 32, "c": 16}, {"a": 16, "b": 64, "c": 48}])
def test_what_is_timed_predicts_what_is_not(counts):
    table, _ = table_for(in_blocks)
    table.probe()
    table.fill()
    for part in table._parts:
        expected = in_blocks(*(counts[name] for name in part.groups))
        assert part.one(counts) == pytest.approx(expected, rel=0.05)


def test_a_choice_is_timed_as_it_is():
    table, asked = table_for(linear)
    table.fill()
    del asked[:]
    table.at({"a": 33, "b": 34, "c": 35})
    assert asked == [(0, {"a": 33, "b": 34}), (1, {"b": 34, "c": 35})]
    assert table._parts[0].one({"a": 33, "b": 34}) == pytest.approx(linear(33, 34), rel=1e-6)


def test_when_time_is_up_what_told_most_is_known():
    table, asked = table_for(linear, points=2)
    table.fill()
    assert [kept for _, kept in asked[2:]] == [{"a": 32, "b": 32}, {"b": 32, "c": 32}]
    assert table.refused == table.wanted - 2 > 0
