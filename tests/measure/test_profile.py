"""Layers of a model by their time, and of two models side by side."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.inspection import macs_of_nodes
from onnxprune.measure.profile import Layer, Profile, by_time, compare, profile, summarize
from onnxprune.runtime import Execution

RUNS = 20


def layer(nodes, ms, operator="Conv", noise=0.01, seed=0, name=None):
    """A layer that takes about ``ms`` in each run."""
    times = ms * np.exp(np.random.default_rng(seed).normal(0, noise, RUNS))
    return Layer(name or nodes[0], operator, operator, tuple(nodes), times)


def made(*layers, weights=None, more=()):
    operators = {node: one.operator for one in layers for node in one.nodes} | dict.fromkeys(more, "Add")
    return Profile(tuple(layers), operators, weights or {})


def rows_of(before, after):
    return {row["layer"]: row for row in compare(before, after)}


class TestCompare:
    def test_the_same_times_are_no_difference(self):
        for seed in range(50):
            before = made(*(layer([f"n{i}"], 1.0, noise=0.1, seed=seed + 100 * i) for i in range(5)))
            after = made(*(layer([f"n{i}"], 1.0, noise=0.1, seed=seed + 100 * i + 50) for i in range(5)))
            assert {row["change"] for row in compare(before, after)} == {"no difference"}

    @pytest.mark.parametrize(("after", "change"), [(0.5, "faster"), (0.98, "no difference"), (1.5, "slower")])
    def test_changes(self, after, change):
        (row,) = compare(made(layer(["a"], 1.0)), made(layer(["a"], after, seed=1)))
        assert row["change"] == change
        assert row["ratio"]["value"] == pytest.approx(after, rel=0.02)
        assert row["ratio"]["low"] < row["ratio"]["value"] < row["ratio"]["high"]

    def test_jobs_that_come_in_between_do_not_change_a_layer(self):
        disturbed = layer(["a"], 1.0)
        disturbed.milliseconds[::2] += 4.0
        (row,) = compare(made(layer(["a"], 1.0, seed=1)), made(disturbed))
        assert row["change"] == "no difference"

    def test_what_is_too_short_to_time_is_not_judged(self):
        (row,) = compare(made(layer(["a"], 0.003)), made(layer(["a"], 0.001)))
        assert row["change"] == "too short to tell"
        still = Layer("a", "Conv", "Conv", ("a",), np.zeros(RUNS))
        (row,) = compare(made(still), made(layer(["a"], 1.0)))
        assert row["ratio"] is None

    def test_a_layer_that_vanished_one_that_was_fused_and_one_that_was_folded(self):
        before = made(
            layer(["conv", "relu"], 2.0), layer(["add"], 1.0), layer(["cut"], 3.0), layer(["folded"], 0.5)
        )
        after = made(layer(["conv", "relu", "add"], 2.5), layer(["fresh"], 0.7), more=["folded"])
        rows = rows_of(before, after)
        assert set(rows) == {"conv", "cut", "folded", "fresh"}
        assert rows["conv"]["note"] == "fused: 2 kernels before, 1 after"
        assert rows["conv"]["before_ms"] == pytest.approx(3.0, rel=0.02)
        assert rows["conv"]["after_ms"] == pytest.approx(2.5, rel=0.02)
        assert (rows["cut"]["change"], rows["cut"]["note"]) == ("gone", "its nodes are gone from the model")
        assert rows["cut"]["after_ms"] is None
        assert rows["folded"]["note"] == "folded into constants, or never run"
        assert (rows["fresh"]["change"], rows["fresh"]["note"]) == ("new", "its nodes are new in the model")
        assert next(iter(rows)) == "cut"  # the largest change comes first

    def test_nodes_with_other_names_are_found_by_their_weights(self):
        weights = {"conv_1": ("w1",), "conv_2": ("w2",)}
        before = made(layer(["conv_1"], 1.0), layer(["conv_2"], 2.0), weights=weights)
        renamed = {"x": ("w2",), "y": ("w1",)}
        after = made(layer(["x"], 1.0), layer(["y"], 0.25), weights=renamed)
        rows = rows_of(before, after)
        assert rows["conv_1"]["ratio"]["value"] == pytest.approx(0.25, rel=0.02)
        assert rows["conv_2"]["ratio"]["value"] == pytest.approx(0.5, rel=0.02)

    def test_a_shared_weight_does_not_join_layers_that_have_names_in_common(self):
        weights = {"a": ("w",), "b": ("w",)}
        one = made(layer(["a"], 1.0), layer(["b"], 2.0), weights=weights)
        assert set(rows_of(one, one)) == {"a", "b"}

    def test_what_was_inserted_is_compared_by_its_kind(self):
        reorder = "inserted by ONNX Runtime: ReorderInput"
        before = made(layer([], 1.0, name=reorder), layer(["a"], 1.0))
        after = made(layer([], 0.5, name=reorder), layer(["a"], 1.0))
        row = rows_of(before, after)[reorder]
        assert (row["change"], row["note"]) == ("faster", None)


def test_by_time():
    one = made(layer(["small"], 1.0, noise=0), layer(["big", "act"], 3.0, noise=0))
    big, small = by_time(one, {"big": 6_000_000, "unknown": 7})
    assert (big["layer"], big["share"], big["cumulative_share"], big["nodes"]) == ("big", 0.75, 0.75, 2)
    assert (big["macs"], big["gmacs_per_s"]) == (6_000_000, 2.0)
    assert (small["cumulative_share"], small["macs"], small["gmacs_per_s"]) == (1.0, None, None)
    json.dumps([big, small])


def images():
    return {"x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)}


class TestProfile:
    def test_every_node_runs_in_a_layer_and_keeps_its_work(self):
        model = ir.from_proto(small_models.residual_net())
        (one,) = profile([model], images(), runs=4)
        nodes = [node for found in one.layers for node in found.nodes]
        assert sorted(nodes) == sorted(str(node.name) for node in model.graph)
        macs = macs_of_nodes(model, {"x": (2, 3, 8, 8)})
        rows = by_time(one, macs)
        assert sum(row["macs"] or 0 for row in rows) == sum(macs.values()) > 0
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        assert all(found.milliseconds.shape == (4,) for found in one.layers)
        assert {row["operator"] for row in rows if row["macs"]} == {"Conv", "Gemm"}
        times = summarize(one, 10.0)
        assert 0 < times["attributed_share"] <= 1
        assert times["layers_ms"] == pytest.approx(sum(row["ms"] for row in rows))

    def test_two_models_file_and_memory(self, tmp_path):
        path = tmp_path / "m.onnx"
        onnx.save(small_models.residual_net(), path)
        before, after = profile([path, ir.load(path)], images(), Execution(threads=2), runs=3)
        rows = compare(before, after)
        assert all(row["before_ms"] is not None and row["after_ms"] is not None for row in rows)
        assert {row["note"] for row in rows} == {None}

    def test_kernels_of_one_node_are_one_layer(self):
        text = """<ir_version: 10, opset_import: ["" : 21]> g (float[2, 8, 16, 16] x, float[8] s)
            => (float[2, 8, 16, 16] y) { [norm] y = GroupNormalization<num_groups = 2>(x, s, s) }"""
        model = ir.from_proto(onnx.parser.parse_model(text))
        feeds = {"x": np.zeros((2, 8, 16, 16), np.float32), "s": np.ones(8, np.float32)}
        (one,) = profile([model], feeds, runs=2)
        assert [(found.name, found.operator) for found in one.layers] == [("norm", "GroupNormalization")]
        assert one.layers[0].kernel.endswith(" kernels")

    def test_failures_name_the_file(self, tmp_path):
        path = tmp_path / "m.onnx"
        onnx.save(small_models.residual_net(), path)
        with pytest.raises(RuntimeFailure, match=r"m\.onnx: run failed"):
            profile([path], {"x": np.ones(3, np.float32)})
        with pytest.raises(UsageError, match="one run or more"):
            profile([path], images(), runs=0)


def test_macs_of_nodes_without_names():
    proto = small_models.mlp()
    for node in proto.graph.node:
        node.name = ""
    named, nameless = (
        macs_of_nodes(ir.from_proto(one), {"x": (1, 16)}) for one in (small_models.mlp(), proto)
    )
    assert sorted(named.values()) == sorted(nameless.values()) == [32 * 4, 16 * 32, 32 * 32]
    outputs = {node.output[0] for node in proto.graph.node}
    assert set(nameless) <= outputs
