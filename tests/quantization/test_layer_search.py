"""As few layers go back as the bound asks for, the most sensitive first, whatever the models are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.quantization.layers import Layer
from onnxprune.quantization.output_errors import OutputError
from onnxprune.quantization.search import (
    FLOAT,
    INTEGER,
    STORED,
    Candidate,
    Judged,
    Trail,
    improve,
    meet_bound,
)


@dataclass
class Pretended:
    """Stands for a model: which layers are rounded, and how."""

    integer: tuple[str, ...]
    stored: tuple[str, ...]


@dataclass
class World:
    """Losses add up: of each layer in integers, and (a tenth of it) stored in 8 bits."""

    losses: dict[str, float]
    bound: float
    made: list[Pretended] = field(default_factory=list)

    @property
    def layers(self):
        return [Layer(name, "Conv", f"{name}.weight", (4, 4), name) for name in self.losses]

    def loss(self, model):
        rounded = sum(self.losses[name] for name in model.integer)
        return rounded + 0.1 * sum(self.losses[name] for name in model.stored)

    def judge(self, model):
        loss = self.loss(model)
        return Judged(OutputError(loss, None), loss, {"metric": -loss})

    def make(self, _work, integer, stored):
        made = Pretended(tuple(layer.name for layer in integer), tuple(layer.name for layer in stored))
        self.made.append(made)
        return made

    def effects(self, _start, place):
        share = 1 if place == INTEGER else 0.1
        return {name: OutputError(share * loss, None) for name, loss in self.losses.items()}

    def run(self, place=INTEGER):
        trail = Trail(self.bound, self.judge)
        names = tuple(self.losses)
        model = Pretended(names, ()) if place == INTEGER else Pretended((), names)
        start = Candidate(None, model, self.judge(model))
        return meet_bound(start, self.layers, place, self.make, self.effects, trail), trail


losses = st.dictionaries(
    st.sampled_from("abcdefghij"), st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=10
)


@settings(max_examples=200, deadline=None)
@given(losses=losses, bound=st.floats(0, 3), place=st.sampled_from([INTEGER, STORED]))
def test_the_bound_is_met_with_as_few_layers_as_the_order_allows(losses, bound, place):
    world = World(losses, bound)
    found, _ = world.run(place)
    model = found.candidate.made
    assert world.loss(model) <= bound
    assert set(found.places) == set(losses)
    for name, where in found.places.items():
        assert (name in model.integer) == (where == INTEGER)
        assert (name in model.stored) == (where == STORED)
    back = [name for name in losses if found.places[name] != place and name in found.reasons]
    if not back:
        return
    least = min(back, key=lambda name: losses[name])
    again = Pretended(
        (*model.integer, least) if found.places[least] == STORED else model.integer,
        tuple(n for n in model.stored if n != least)
        if found.places[least] == STORED
        else (*model.stored, least),
    )
    assert world.loss(again) > bound - 1e-9
    stay = [name for name in losses if name not in back]
    assert all(losses[least] >= losses[name] for name in stay)


def test_bisection_tries_few():
    world = World({f"layer{number}": 1.0 + number for number in range(64)}, 500.0)
    found, trail = world.run()
    assert 0 < len(found.reasons) < 64
    assert len(world.made) <= 8
    assert trail.steps[-1]["step"].endswith("of 64 layers compute in float")


def test_nothing_goes_back_where_the_bound_is_met():
    world = World({"a": 0.1, "b": 0.2}, 1.0)
    found, trail = world.run()
    assert found.places == {"a": INTEGER, "b": INTEGER}
    assert not world.made
    assert not trail.steps


def test_weights_stay_in_float_where_eight_bits_are_too_few():
    world = World({"a": 1.0, "b": 0.1}, 0.05)
    found, _ = world.run()
    assert found.places == {"a": FLOAT, "b": STORED}
    assert found.reasons["a"].startswith("stays in float, or the bound is missed: alone it leaves ")


@pytest.mark.parametrize(("error", "kept"), [(0.5, True), (0.979, True), (0.99, False), (1.5, False)])
def test_a_step_is_kept_where_it_helps(error, kept):
    def judge(model):
        return Judged(OutputError(model, None), 0.0, {})

    trail = Trail(1.0, judge)
    start = Candidate("before", 1.0, judge(1.0))
    found = improve(start, "step", lambda work: work + "!", lambda _: error, trail, always=False)
    assert (found.work == "before!") == kept
    assert trail.steps[-1]["kept"] == kept
    forced = improve(start, "step", lambda work: work + "!", lambda _: error, trail, always=True)
    assert forced.work == "before!"


def test_a_step_that_breaks_the_bound_is_not_kept():
    def judge(model):
        return Judged(OutputError(model, None), 2.0 if model < 1 else 0.0, {})

    start = Candidate("before", 1.0, judge(1.0))
    found = improve(start, "step", lambda work: work, lambda _: 0.5, Trail(1.0, judge), always=False)
    assert found is start


def test_decibels():
    assert OutputError(0.1, None).sqnr_db == pytest.approx(20)
    assert OutputError(0.0, None).sqnr_db == 144
    assert OutputError(np.inf, None).sqnr_db == -np.inf
