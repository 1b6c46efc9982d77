"""The verdict: what to do, or why to leave a model alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxprune.advice.actions import Action
from onnxprune.advice.layers import ELEMENTWISE, FOLDED, MOVEMENT, OVERHEAD, SHRINKS, STAYS, Layer
from onnxprune.advice.verdict import verdict_of, where
from onnxprune.measure.intervals import Estimate


def action(title, ratio, worth=True):
    estimate = None if ratio is None else Estimate(ratio, ratio - 0.01, ratio + 0.01, 20)
    return Action(title, "run it", worth, estimate, None, 0.5, "low", None, "because")


def layer(part, us, limit="compute", name="a"):
    return Layer(name, "Conv", part, us, 0, 0, (name,), limit)


def found(*layers, wall_ms=1.0, folded_ms=None, bound=0.3):
    return where(layers, wall_ms, wall_ms if folded_ms is None else folded_ms, bound)


def test_parts_add_up_to_the_whole():
    place = found(layer(SHRINKS, 500.0), layer(MOVEMENT, 100.0, "memory"), wall_ms=1.0, folded_ms=0.8)
    assert sum(place.parts.values()) == pytest.approx(1.0)
    assert place.parts == pytest.approx({SHRINKS: 0.5, MOVEMENT: 0.1, OVERHEAD: 0.2, FOLDED: 0.2})
    assert place.moving == pytest.approx(0.1)
    assert next(iter(place.parts)) == SHRINKS


def test_kernels_that_seem_longer_than_the_run_leave_no_negative_overhead():
    place = found(layer(SHRINKS, 1200.0), wall_ms=1.0)
    assert place.parts == {SHRINKS: 1.0, OVERHEAD: 0.0}


def test_kernels_with_nothing_to_do_are_overhead_too():
    place = found(layer(SHRINKS, 300.0), layer(ELEMENTWISE, 300.0, "overhead"))
    assert place.overhead == pytest.approx(0.4 + 0.3)


def test_the_best_action_comes_first_with_its_interval_and_the_best_of_the_other_kind():
    actions = [
        action("remove 50% of the channels", 0.4),
        action("remove 25% of the channels", 0.6),
        action("quantize to INT8", 0.7),
    ]
    text = verdict_of(actions, found(layer(SHRINKS, 900.0)), [])
    assert text.startswith("Worth it: remove 50% of the channels, and 0.40 of the time is left (0.39 to 0.41")
    assert "quantize to INT8, and 0.70" in text
    assert "25%" not in text
    assert "90% of 1 ms is in layers that channels shrink" in text


def test_overhead_is_a_reason_to_leave_it_alone():
    place = found(*[layer(ELEMENTWISE, 2.0, "overhead", f"n{i}") for i in range(40)])
    text = verdict_of([action("remove 50% of the channels", 0.99, worth=False)], place, [])
    assert text.startswith("Leave it alone: 100% of its 1 ms is the runtime calling 40 kernels")
    assert "none of 1 candidates" in text


def test_a_quick_model_is_left_alone_unless_microseconds_count():
    place = found(layer(ELEMENTWISE, 20.0, "overhead"), wall_ms=0.05)
    text = verdict_of([action("remove 25% of the residual layers", 0.7)], place, [])
    assert text.startswith(
        "Leave it alone, which is already fast (50 us), unless microseconds count; then: remove 25%"
    )
    slow = replace(place, wall_ms=5.0)
    assert verdict_of([action("x", 0.7)], slow, []).startswith("Worth it: ")


def test_layers_that_must_stay_are_a_reason():
    text = verdict_of([], found(layer(STAYS, 900.0)), ["output y of the model"])
    assert "90% of the time is in layers whose channels must stay" in text
    assert "nothing can be removed (output y of the model)" in text


def test_moving_data_is_a_reason():
    place = found(
        layer(SHRINKS, 100.0), layer(MOVEMENT, 600.0, "memory"), layer(ELEMENTWISE, 250.0, "memory")
    )
    text = verdict_of([action("x", 0.98, worth=False)], place, [])
    assert f"channels hardly touch what takes the time (60% {MOVEMENT}, 25% {ELEMENTWISE})" in text


def test_nothing_timed_is_said():
    assert "no candidate could be timed" in verdict_of([action("x", None, worth=False)], None, [])


def test_a_busy_machine_is_said():
    place = found(layer(SHRINKS, 900.0))
    assert "busy" in verdict_of([action("x", 0.5)], place, [], noise=0.2)
    assert "busy" not in verdict_of([action("x", 0.5)], place, [], noise=0.05)


def test_what_is_only_had_at_a_high_risk_says_so():
    risky = replace(action("remove 75% of the channels", 0.2), risk="very high")
    place = found(layer(SHRINKS, 900.0))
    assert verdict_of([risky], place, []).startswith("Only at a high risk: remove 75%")
    assert verdict_of([risky, action("x", 0.9)], place, []).startswith("Worth it: ")


def test_what_rests_on_a_bound_is_only_probable():
    bounded = replace(action("remove 25% of the channels", 0.5), basis="bounded", bound=0.6)
    text = verdict_of([bounded], found(layer(SHRINKS, 900.0)), [])
    assert text.startswith("Probably worth it: remove 25% of the channels, and about 0.60 of the time")


def test_what_folding_does_is_not_claimed_for_pruning():
    folded = action("fold what is constant", 0.5, worth=False)
    place = found(layer(SHRINKS, 900.0))
    told = "every pruned model has, alone leaves 0.50"
    assert told in verdict_of([action("x", 0.3), folded], place, [])
    assert told not in verdict_of([action("x", 0.3), replace(folded, latency_ratio=None)], place, [])
