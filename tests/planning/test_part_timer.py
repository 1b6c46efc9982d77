"""Times of parts: asked by counts, measured once for whatever is the same, kept between models."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from small_models import concat_net, depthwise_net, residual_net

from onnxprune.analyze import analyze
from onnxprune.errors import RuntimeFailure
from onnxprune.measure.part_times import PartTime
from onnxprune.ops.kept import Kept
from onnxprune.parts import Part, split_into_parts
from onnxprune.planning import part_timer
from onnxprune.planning.part_timer import FIELDS, PartTimer
from onnxprune.result_cache import ResultCache
from onnxprune.runtime import Execution

ON_CPU = Execution()


def timer_for(
    model: ir.Model, cache: ResultCache | None = None, execution: Execution = ON_CPU
) -> tuple[PartTimer, tuple[Part, ...]]:
    analysis = analyze(model)
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    return PartTimer(analysis, parts, execution, cache), parts


@pytest.fixture
def times(monkeypatch) -> list[float]:
    """What the next measurements find: milliseconds; negative ones disagree. The last one stays."""
    queue = [1.0]

    def time_part(model, feeds, execution, borders):
        for value in model.graph.inputs:
            declared = [size if isinstance(size, int) else None for size in value.shape or ()]
            given = feeds[str(value.name)].shape
            assert all(size in (None, real) for size, real in zip(declared, given, strict=True))
        found = queue.pop(0) if len(queue) > 1 else queue[0]
        return PartTime(abs(found), 0.01, 2, found > 0)

    monkeypatch.setattr(part_timer, "time_part", time_part)
    return queue


def test_groups_are_those_that_change_its_sizes():
    timer, parts = timer_for(ir.from_proto(concat_net()))
    named = {part.name: set(timer.groups_of(part)) for part in parts}
    assert len(named["stem_node"]) == 1
    joined = next(groups for name, groups in named.items() if "joined" in name)
    assert len(joined) == 2, "both branches, side by side"
    left = next(groups for name, groups in named.items() if "left" in name)
    assert len(left) == 2, "the stem, and its own"


def test_measured_once_for_what_is_the_same(times):
    timer, parts = timer_for(ir.from_proto(residual_net()))
    found = [timer.time_ms(part, {}) for part in parts]
    assert found == [1.0] * len(parts)
    assert 0 < timer.measured < len(parts), "two blocks are alike"
    before = timer.measured
    assert [timer.time_ms(part, {}) for part in parts] == found
    whole = {group.name: group.size for group in timer._groups.values()}
    assert [timer.time_ms(part, whole) for part in parts] == found, "whole, in other words"
    assert timer.measured == before
    assert timer.seconds > 0


def test_other_counts_are_measured_anew(times):
    timer, parts = timer_for(ir.from_proto(depthwise_net()))
    part = next(part for part in parts if timer.groups_of(part))
    (group, *_) = timer.groups_of(part)
    signatures = {timer.signature(part, {group: count}) for count in range(1, timer._groups[group].size + 1)}
    assert len(signatures) == timer._groups[group].size
    assert timer.signature(part, {"another group": 3}) == timer.signature(part, {})


@pytest.mark.parametrize("make", [residual_net, depthwise_net, concat_net])
def test_what_is_fed_fits_at_every_count(times, make):
    timer, parts = timer_for(ir.from_proto(make()))
    for part in parts:
        for share in (0.25, 0.5, 0.75):
            kept = {name: max(1, int(timer._groups[name].size * share)) for name in timer.groups_of(part)}
            timer.time_ms(part, kept)
            left = Kept(timer._analysis.channels, timer._removed(part, kept))
            for name in timer.groups_of(part):
                gone = timer._removed(part, {name: kept[name]})[timer._analysis.units[name]]
                assert int(gone.sum()) == timer._groups[name].size - kept[name]
            assert left.shape(part.outputs[0]) is not None


def test_true_times_end_to_end():
    timer, parts = timer_for(ir.from_proto(depthwise_net()))
    for part in parts:
        groups = timer.groups_of(part)
        for kept in ({}, dict.fromkeys(groups, 4), dict.fromkeys(groups, 7)):
            assert timer.time_ms(part, kept) > 0
        assert timer.obstacle(part) is None


def test_kept_on_disk_for_other_models_and_processes(tmp_path, times):
    cache = ResultCache(tmp_path, FIELDS)
    first, first_parts = timer_for(ir.from_proto(residual_net(0)), cache)
    for part in first_parts:
        first.time_ms(part, {})
    assert first.measured == len(list(tmp_path.iterdir()))
    times[:] = [99.0]
    second, second_parts = timer_for(ir.from_proto(residual_net(7)), ResultCache(tmp_path, FIELDS))
    assert {second.time_ms(part, {}) for part in second_parts} == {1.0}
    assert second.measured == 0
    other, other_parts = timer_for(ir.from_proto(residual_net()), cache, Execution(threads=2))
    assert {other.time_ms(part, {}) for part in other_parts} == {99.0}, "another setting is another figure"


@pytest.mark.parametrize("what", ["processor", "graphics", "VERSION"])
def test_another_machine_or_runtime_is_another_figure(tmp_path, times, monkeypatch, what):
    cache = ResultCache(tmp_path, FIELDS)
    execution = Execution() if what != "graphics" else Execution(provider="cuda")
    old = part_timer._setting(execution)
    changed = "9.9.9" if what == "VERSION" else lambda: "something else"
    monkeypatch.setattr(part_timer, what, changed)
    assert part_timer._setting(execution) != old
    assert cache.damaged == []


def test_figures_of_bursts_that_disagree_are_not_kept(tmp_path, times):
    times[:] = [-1.0]
    cache = ResultCache(tmp_path, FIELDS)
    timer, parts = timer_for(ir.from_proto(depthwise_net()), cache)
    assert timer.time_ms(parts[0], {}) == 1.0
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_entry_is_measured_again(tmp_path, times):
    cache = ResultCache(tmp_path, FIELDS)
    timer, parts = timer_for(ir.from_proto(depthwise_net()), cache)
    timer.time_ms(parts[0], {})
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace("1.0", "0.1"))
    times[:] = [2.0]
    fresh, fresh_parts = timer_for(ir.from_proto(depthwise_net()), cache)
    assert fresh.time_ms(fresh_parts[0], {}) == 2.0
    assert cache.damaged == [str(file)]


def test_again_keeps_the_better_figure(tmp_path, times):
    cache = ResultCache(tmp_path, FIELDS)
    timer, parts = timer_for(ir.from_proto(depthwise_net()), cache)
    part = parts[0]
    times[:] = [3.0, 2.0, 4.0]
    assert timer.time_ms(part, {}) == 3.0
    assert timer.again(part, {}) == 2.0
    assert timer.again(part, {}) == 2.0
    assert timer.time_ms(part, {}) == 2.0
    fresh, fresh_parts = timer_for(ir.from_proto(depthwise_net()), cache)
    assert fresh.time_ms(fresh_parts[0], {}) == 2.0


def test_what_can_not_be_cut_out_says_why(times):
    model = graph(
        """h = MatMul(x, a_w)
           q = If(flag) <then_branch = yes () => (float[N,8] o) { o = MatMul(h, b_w) },
                         else_branch = no () => (float[N,8] o) { o = Relu(h) }>
           y = MatMul(q, c_w)""",
        inputs="float[N,6] x, bool flag",
        constants={"a_w": (6, 8), "b_w": (8, 8), "c_w": (8, 3)},
    )
    timer, parts = timer_for(model)
    reasons = [timer.obstacle(part) for part in parts]
    assert [reason is not None for reason in reasons] == [False, True, False]
    assert "graph of its own" in str(reasons[1])
    with pytest.raises(RuntimeFailure, match="graph of its own"):
        timer.time_ms(parts[1], {})


def test_failures_are_not_tried_twice(monkeypatch):
    calls = []

    def fail(*_):
        calls.append(1)
        raise RuntimeFailure("no room")

    monkeypatch.setattr(part_timer, "time_part", fail)
    timer, parts = timer_for(ir.from_proto(depthwise_net()))
    for _ in range(2):
        with pytest.raises(RuntimeFailure, match="can't be timed alone: no room"):
            timer.time_ms(parts[0], {})
    assert len(calls) == 1


def test_masks_and_indices_are_what_they_are_in_the_model(monkeypatch):
    """Random indices would lie outside their table."""
    seen = {}

    def time_part(model, feeds, execution, borders):
        seen.update(feeds)
        return PartTime(1.0, 0.0, 2, True)

    monkeypatch.setattr(part_timer, "time_part", time_part)
    model = graph(
        "h = MatMul(x, a_w) i = ArgMax<axis = 1, keepdims = 0>(h) g = MatMul(x, b_w) t = Gather(g, i)"
        " y = MatMul(t, c_w)",
        inputs="float[4,6] x",
        constants={"a_w": (6, 4), "b_w": (6, 8), "c_w": (8, 3)},
    )
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    analysis = analyze(model)
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    timer = PartTimer(analysis, parts, Execution(), None, feeds={"x": x})
    for part in parts:
        timer.time_ms(part, {})
    product = x @ model.graph.initializers["a_w"].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(seen["i"], product.argmax(axis=1))


def test_a_line_for_people():
    timer, parts = timer_for(ir.from_proto(depthwise_net()))
    part = next(part for part in parts if part.name == "project_node")
    (group,) = [name for name in timer.groups_of(part) if timer._groups[name].size == 32]
    assert timer.describe(part, {}) == "Conv project.weight 16x32x1x1"
    assert timer.describe(part, {group: 24}) == "Conv project.weight 16x32x1x1 -> 16x24x1x1"
