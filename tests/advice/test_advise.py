"""Advice from end to end, on small models; no test looks at how fast anything is."""

from __future__ import annotations

import shlex

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import small_models

from onnxprune import advise
from onnxprune.advice import repaired
from onnxprune.advice import run as module
from onnxprune.advice.accuracy import divided
from onnxprune.advice.machine import Machine
from onnxprune.advice.summary import for_people
from onnxprune.advice.trials import Clock
from onnxprune.data import Dataset
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.measure.fitting import metric_for
from onnxprune.measure.intervals import Estimate
from onnxprune.report.as_json import as_json
from onnxprune.report.table import plain_text
from onnxprune_cli.main import execute


@pytest.fixture
def quick(monkeypatch):
    """A benchmark that takes no time, and finds what MACs would say."""

    class Found:
        control = Estimate(1.0, 0.99, 1.01, 20)
        verdict = "faster"
        ratio = Estimate(0.4, 0.39, 0.41, 20)

    calls = []

    def benchmark(a, b, **options):
        calls.append((b, options))
        return Found

    monkeypatch.setattr(module, "benchmark", benchmark)
    monkeypatch.setattr(module, "measure_machine", lambda _: Machine(50.0, 50.0, 0.2))
    monkeypatch.setattr(module, "_WALL_SECONDS", 0.02)
    monkeypatch.setattr(module, "_PROFILE_SECONDS", 0.02)
    return calls


def samples(count=60, labels=True):
    generator = np.random.default_rng(0)
    arrays = {"x": generator.standard_normal((count, 3, 8, 8)).astype(np.float32)}
    if labels:
        arrays["label"] = generator.integers(0, 10, count)
    return Dataset.from_arrays(arrays)


def test_everything_is_there(quick, tmp_path):
    path = small_models.save_model(small_models.residual_net(), tmp_path / "m.onnx")
    found = advise(path, time_limit=60)
    sections = found.report.sections
    assert "0.40 of the time is left (0.39 to 0.41, measured here)" in found.verdict
    assert sections["verdict"]["advice"] == found.verdict
    assert {row["action"] for row in sections["actions"]} >= {
        "remove 50% of the channels",
        "quantize to INT8",
    }
    assert "set 2 of 4 weights to zero" in {a.title for a in found.actions}
    assert len(found.layers) == len(sections["layers"]) > 3
    shares = [row["time_share"] for row in sections["where the time goes"]]
    assert sum(shares) == pytest.approx(1.0)
    assert 0 < sections["limits"]["least_amdahl_ratio"] <= 1
    assert sections["2:4 on sparse tensor cores"]
    as_json(found.report)
    text = plain_text(for_people(found.report, sparse=True, verbose=False))
    assert "1. " in text
    assert "onnxprune prune" in text
    assert sorted(tmp_path.iterdir()) == [path]


def test_every_command_line_runs(quick, tmp_path, capsys):
    path = small_models.save_model(small_models.attention(), tmp_path / "my model.onnx")
    found = advise(path, time_limit=60)
    lines = [action.command for action in found.actions if action.worth and "prune" in (action.command or "")]
    assert len(lines) >= 3
    for line in lines:
        assert execute(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1 + len(lines)


def test_with_data_candidates_are_repaired_and_judged(quick, tmp_path):
    model = ir.from_proto(small_models.residual_net())
    found = advise(model, data=samples(), time_limit=300)
    by_title = {action.title: action for action in found.actions}
    repaired = by_title["remove 50% of the channels, and repair"]
    plain = by_title["remove 50% of the channels"]
    assert "--recover reconstruct" in repaired.command
    for action in (repaired, plain, by_title["quantize to INT8"]):
        assert action.accuracy.metric == "top1"
        assert action.accuracy.value.count == 30  # the other half was repaired on


def test_samples_that_are_repaired_on_are_not_judged_on():
    data = samples(101)
    assert [len(part) for part in divided(data, 256, 4096)] == [50, 51]
    mending, judging = divided(data, 30, 50)
    assert (len(mending), len(judging)) == (30, 50)
    both = np.concatenate([mending.arrays["x"], judging.arrays["x"]])
    assert len(np.unique(both.reshape(80, -1), axis=0)) == 80


def test_too_few_samples_are_not_judged_on_and_that_is_said(quick):
    found = advise(ir.from_proto(small_models.residual_net()), data=samples(12), time_limit=60)
    assert all(action.accuracy is None for action in found.actions)
    assert any("12 samples are too few" in one.reason for one in found.report.skipped)


def test_the_metric_is_the_one_that_fits():
    model = ir.from_proto(small_models.residual_net())
    assert metric_for(samples(), model, model) == "top1"
    assert metric_for(samples(labels=False), model, model) == "agreement"
    values = Dataset.from_arrays({**samples().arrays, "label": np.zeros((60, 10), np.float32)})
    assert metric_for(values, model, model) == "mse"


def test_a_model_with_nothing_to_remove_is_left_alone(monkeypatch):
    monkeypatch.setattr(module, "in_int8", _refuse)
    found = advise(ir.from_proto(small_models.frozen_net()), time_limit=2)
    assert found.verdict.startswith("Leave it alone: ")
    assert "nothing can be removed" in found.verdict
    assert found.report.passed
    (int8,) = (action for action in found.actions if action.title == "quantize to INT8")
    assert int8.reason == "it can't be made: no such kernel"


def _refuse(*args, **options):
    raise RuntimeFailure("no such kernel")


def test_a_time_limit_that_is_over_leaves_reasons(quick):
    found = advise(ir.from_proto(small_models.residual_net()), time_limit=0.01)
    assert quick == []
    assert all("--time-limit" in action.reason for action in found.actions)
    assert not found.layers
    assert any(one.name == "layers" and "the time is over" in one.reason for one in found.report.skipped)


def test_what_folding_does_is_told_apart_from_pruning(quick):
    found = advise(_with_shape_computations(), time_limit=60)
    titles = {action.title: action for action in found.actions}
    assert not titles["fold what is constant"].worth
    assert titles["fold what is constant"].command is None
    assert "folding what is constant does as much" in titles["remove 50% of the channels"].reason
    assert "fold what is constant" not in {
        action.title for action in advise(ir.from_proto(small_models.mlp()), time_limit=60).actions
    }


def _with_shape_computations():
    """A small model whose export computes the sizes of a Reshape from the shape of its input."""
    model = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[n, 16] x) => (float[n, 4] y)
        <float[16, 32] w = {0}, float[32, 4] v = {0}, int64 zero = {0},
         int64[1] all = {32}, int64[1] axis = {0}>
        {
            s = Shape(x)
            n = Gather(s, zero)
            m = Unsqueeze(n, axis)
            target = Concat<axis: int = 0>(m, all)
            h = MatMul(x, w)
            r = Relu(h)
            t = Reshape(r, target)
            y = MatMul(t, v)
        }
    """)
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.name in "wv":
            tensor.ClearField("float_data")
            tensor.raw_data = generator.standard_normal(tuple(tensor.dims)).astype(np.float32).tobytes()
    return ir.from_proto(model)


def test_a_profile_that_can_not_be_had_is_said(quick, monkeypatch):
    monkeypatch.setattr(module, "time_kernels", _refuse)
    found = advise(ir.from_proto(small_models.mlp()), time_limit=30)
    assert (found.layers, found.where) == ((), None)
    assert any("no such kernel" in entry.reason for entry in found.report.skipped)


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="time_limit"):
        advise(ir.from_proto(small_models.mlp()), time_limit=0)


@pytest.mark.long
def test_it_holds_with_real_measurements(tmp_path):
    path = small_models.save_model(small_models.residual_net(width=32), tmp_path / "m.onnx")
    found = advise(path, time_limit=20)
    timed = [action for action in found.actions if action.latency_ratio is not None]
    assert timed
    assert all(
        action.latency_ratio.low <= action.latency_ratio.value <= action.latency_ratio.high
        for action in timed
    )


def test_a_repair_that_takes_too_long_is_not_tried_again(quick, monkeypatch):
    tried = []

    def prune(model, **options):
        tried.append(options["pattern"])
        monkeypatch.setattr(Clock, "left_seconds", 30.0)
        options["progress"](0.1)
        raise AssertionError("it went on")

    monkeypatch.setattr(Clock, "left_seconds", 60.0)
    monkeypatch.setattr(repaired, "prune", prune)
    found = advise(ir.from_proto(small_models.residual_net()), data=samples(), time_limit=60)
    assert len(tried) == 1
    mended = [action for action in found.actions if action.title.endswith("and repair")]
    assert len(mended) > 1
    assert all("repairing takes longer than the --time-limit" in action.reason for action in mended)


def test_a_quantized_model_that_does_not_open_is_said_in_a_few_words(quick, monkeypatch):
    def save(made, out):
        assert made is model
        out.write_bytes(b"no model")

    model = ir.from_proto(small_models.mlp())
    monkeypatch.setattr(module, "in_int8", lambda *_, **__: model)
    monkeypatch.setattr(module, "save", save)
    found = advise(model, time_limit=60)
    (int8,) = (action for action in found.actions if action.title == "quantize to INT8")
    assert int8.reason == "it can't be made: ONNX Runtime can't open what its own quantization made of it"


def test_a_model_that_memory_cannot_hold_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr("onnxprune.machine.memory_bytes", lambda: 1000)
    with pytest.raises(
        RuntimeFailure, match=r"its weights take .* bytes, and this machine has 1000 of memory"
    ):
        advise(ir.from_proto(small_models.mlp()), time_limit=1)
