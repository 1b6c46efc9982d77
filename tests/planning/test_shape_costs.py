"""Costs that are counted from what changes, against those that are counted anew."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from generated import generated_model

from onnxprune.allocate.options import Options, reason_to_skip
from onnxprune.analyze import analyze
from onnxprune.cost import cost_of
from onnxprune.ops.kept import Kept
from onnxprune.planning import shape_costs
from onnxprune.planning.recipes import share_of
from onnxprune.planning.shape_costs import ShapeCosts
from onnxprune.types import Budget

METRICS = ("macs", "params", "bytes")


def network(name):
    made = generated_model(int(name), 6) if name.isdecimal() else getattr(small_models, name)()
    return ir.from_proto(made)


def some(generator, analysis):
    able = [group for group in analysis.groups if reason_to_skip(group, Options()) is None]
    removed = {
        group.name: np.sort(generator.permutation(group.size)[: generator.integers(group.size)]).astype(
            np.int32
        )
        for group in able
    }
    return able, removed


@pytest.mark.parametrize("name", ["residual_net", "attention", "depthwise_net", "mlp", *map(str, range(6))])
def test_costs_are_those_of_the_cut_graph(name):
    analysis = analyze(network(name))
    channels, graph = analysis.channels, analysis.model.graph
    whole = cost_of(graph, channels)
    generator = np.random.default_rng(0)
    able, already = some(generator, analysis)
    first = {group.name: already[group.name][:1] for group in able}
    costs = {False: ShapeCosts(analysis, {}), True: ShapeCosts(analysis, first)}
    for _ in range(4):
        able, removed = some(generator, analysis)
        removed.pop(able[0].name)  # so that what is gone already counts
        for given, counted in costs.items():
            gone = {**(first if given else {}), **removed}
            left = cost_of(graph, channels, Kept(channels, analysis.removed_labels(gone)))
            for metric in METRICS:
                limit = counted.limit(Budget(metric, 0.5))
                assert limit.left(removed) == pytest.approx(share_of(left, whole, metric), abs=1e-12)
                assert limit.holders is not None
                held = sum(holder.share for holder in limit.holders(removed))
                assert held == pytest.approx(limit.left(removed), abs=1e-9)
                for group in able:
                    several = [np.arange(count, dtype=np.int32) for count in range(group.size)]
                    assert limit.along is not None
                    found = limit.along(removed, group.name, several)
                    exact = [limit.left({**removed, group.name: gone}) for gone in several]
                    assert found == pytest.approx(exact, abs=1e-9)


def test_a_second_look_counts_nothing(monkeypatch):
    analysis = analyze(network("residual_net"))
    limit = ShapeCosts(analysis, {}).limit(Budget("macs", 0.5))
    _, removed = some(np.random.default_rng(1), analysis)
    found = limit.left(removed)

    def fail(*_):
        raise AssertionError("it is counted again")

    monkeypatch.setattr(shape_costs, "node_macs", fail)
    assert limit.left({name: gone.copy() for name, gone in removed.items()}) == found


def test_costs_that_go_in_steps_are_counted_one_by_one(monkeypatch):
    count = shape_costs.node_macs
    monkeypatch.setattr(shape_costs, "node_macs", lambda *given: -(-(count(*given) or 0) // 5000) * 5000)
    analysis = analyze(network("residual_net"))
    limit = ShapeCosts(analysis, {}).limit(Budget("macs", 0.5))
    able, removed = some(np.random.default_rng(2), analysis)
    for group in able:
        several = [np.arange(number, dtype=np.int32) for number in range(group.size)]
        found = limit.along(removed, group.name, several)
        assert found == pytest.approx(
            [limit.left({**removed, group.name: gone}) for gone in several], abs=1e-9
        )
