"""Trials of channel groups and of tensors: the same for any number of processes, resumed, never half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph

import onnxprune
from onnxprune.analyze import analyze
from onnxprune.data import Dataset
from onnxprune.errors import DataError, LimitMissed, NothingToPrune, UsageError
from onnxprune.planning import curves, workbench
from onnxprune.rewrite.cut import cut

BODY = """
    h = Conv(x, a_w, a_b) r = Relu(h) b = Conv(r, b_w) s = Relu(b) p = GlobalAveragePool(s) f = Flatten(p)
    y = Gemm<transB = 1>(f, c_w)
"""
CONSTANTS = {"a_w": (16, 3, 3, 3), "a_b": (16,), "b_w": (24, 16, 1, 1), "c_w": (5, 24)}
SAMPLES = 9


def network(seed: int = 0) -> ir.Model:
    return graph(BODY, constants=CONSTANTS, seed=seed)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(ir.to_proto(network()), path)
    return path


def dataset(labels=None, samples=SAMPLES) -> Dataset:
    model = network()
    shape = [samples, *(int(size) for size in model.graph.inputs[0].shape[1:])]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Dataset.from_arrays({"x": x} if labels is None else {"x": x, "label": labels})


LABELS = np.random.default_rng(1).integers(0, 5, SAMPLES)


def found(sensitivity):
    return sensitivity.report.sections["trials"]


def test_each_curve_is_what_pruning_that_group_alone_costs(file):
    data = dataset()
    result = onnxprune.measure_sensitivity(file, data=data, amounts=[0.25, 0.5])
    analysis = analyze(onnxprune.load(file))
    original = np.asarray(outputs(onnxprune.load(file), data), np.float64)
    spread = np.square(original - original.mean(axis=0)).sum()
    assert set(result.curves) == {"a_w", "b_w"}
    for name, curve in result.curves.items():
        assert curve.removed.tolist()[0] == 0
        for count, increase in zip(curve.removed[1:], curve.increase[1:], strict=True):
            weakest = np.argsort(onnxprune.score(analysis.model, analysis.groups).channels[name])[:count]
            gone = analysis.removed_labels({name: weakest})
            moved = np.square(outputs(cut(analysis.model, analysis.channels, gone), data) - original).sum()
            assert increase == pytest.approx(moved / spread, rel=1e-4)


def outputs(model, data):
    from onnxprune.runtime import open_session

    return open_session(model).run(data.arrays)["y"].astype(np.float64)


def test_labels_give_loss_and_share_of_right_answers(file):
    result = onnxprune.measure_sensitivity(file, data=dataset(LABELS), amounts=[0.5])
    setting = result.report.sections["setting"]
    scores = outputs(onnxprune.load(file), dataset())
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances = powers / powers.sum(axis=1, keepdims=True)
    expected = -np.log(chances[np.arange(SAMPLES), LABELS]).mean()
    assert setting["cross_entropy"] == pytest.approx(expected, rel=1e-5)
    assert setting["top1_share"] == pytest.approx((scores.argmax(axis=1) == LABELS).mean())
    for row in found(result):
        assert row["increase"] == pytest.approx(row["cross_entropy"] - setting["cross_entropy"])
        assert 0 <= row["top1_share"] <= 1


@pytest.mark.long
@pytest.mark.parametrize("pattern", ["channels", "unstructured"])
def test_two_processes_find_what_one_finds(file, pattern):
    options = {"data": dataset(LABELS), "amounts": [0.25, 0.5], "pattern": pattern}
    alone = onnxprune.measure_sensitivity(file, **options)
    assert found(onnxprune.measure_sensitivity(file, jobs=2, **options)) == found(alone)


@pytest.mark.long
def test_a_model_in_memory_reaches_other_processes(file):
    alone = onnxprune.measure_sensitivity(file, data=dataset(), amounts=[0.5])
    both = onnxprune.measure_sensitivity(onnxprune.load(file), data=dataset(), amounts=[0.5], jobs=2)
    assert found(both) == found(alone)


def test_a_second_run_runs_nothing(file, tmp_path, monkeypatch):
    options = {"data": dataset(LABELS), "amounts": [0.25, 0.5], "cache": tmp_path / "cache"}
    first = onnxprune.measure_sensitivity(file, **options)
    assert first.report.sections["setting"]["from_cache"] == 0

    def fail(*_):
        raise AssertionError("a model was run")

    monkeypatch.setattr(curves, "open_session", fail)
    monkeypatch.setattr(workbench, "open_session", fail)
    second = onnxprune.measure_sensitivity(file, **options)
    assert found(second) == found(first)
    assert second.report.sections["setting"]["from_cache"] == len(found(first)) == 4


def test_an_interrupted_run_goes_on_where_it_stopped(file, tmp_path, monkeypatch):
    options = {"data": dataset(), "amounts": [0.25, 0.5], "cache": tmp_path / "cache"}
    done = []

    def interrupt(share):
        done.append(share)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        onnxprune.measure_sensitivity(file, progress=interrupt, **options)
    runs = []
    plain = workbench.Workbench.__call__

    def counted(self, trial):
        runs.append(trial.subject)
        return plain(self, trial)

    monkeypatch.setattr(workbench.Workbench, "__call__", counted)
    again = onnxprune.measure_sensitivity(file, **options)
    assert len(runs) == 1
    assert again.report.sections["setting"]["from_cache"] == 3
    assert found(again) == found(onnxprune.measure_sensitivity(file, data=dataset(), amounts=[0.25, 0.5]))


@pytest.mark.parametrize("change", ["weights", "data", "labels", "metric", "pattern"])
def test_what_was_measured_otherwise_is_not_reused(file, tmp_path, change):
    options = {"data": dataset(LABELS), "amounts": [0.5], "cache": tmp_path / "cache"}
    onnxprune.measure_sensitivity(file, **options)
    model = onnxprune.load(file)
    if change == "weights":
        weight = model.graph.initializers["c_w"]
        array = weight.const_value.numpy().copy()
        array[0, 0] += 1
        weight.const_value = ir.tensor(array, name="c_w")
    options |= {
        "weights": {},
        "data": {"data": dataset(LABELS[:8], 8)},
        "labels": {"data": dataset((LABELS + 1) % 5)},
        "metric": {"metric": "divergence"},
        "pattern": {"pattern": "unstructured"},
    }[change]
    again = onnxprune.measure_sensitivity(model, **options)
    assert again.report.sections["setting"]["from_cache"] == 0


def test_a_damaged_entry_is_measured_again_and_named(file, tmp_path):
    options = {"data": dataset(), "amounts": [0.25, 0.5], "cache": tmp_path / "cache"}
    first = onnxprune.measure_sensitivity(file, **options)
    entry = sorted((tmp_path / "cache").iterdir())[0]
    entry.write_text(entry.read_text()[:40])
    again = onnxprune.measure_sensitivity(file, **options)
    assert found(again) == found(first)
    assert [note.reason for note in again.report.skipped if note.name == str(entry)] == [
        "this entry of the cache is damaged: it was ignored, and measured again"
    ]
    third = onnxprune.measure_sensitivity(file, **options)
    assert not any(str(entry) == note.name for note in third.report.skipped)


def test_a_trial_that_fails_is_reported_and_no_other(file, monkeypatch):
    plain = workbench.Cutter.without

    def without(self, trial):
        model = plain(self, trial)
        if trial.subject == "a_w" and trial.removed > 4:
            weight = model.graph.initializers["c_w"]
            weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(np.nan), name="c_w")
        return model

    monkeypatch.setattr(workbench.Cutter, "without", without)
    result = onnxprune.measure_sensitivity(file, data=dataset(), amounts=[0.25, 0.5])
    assert result.curves["a_w"].removed.tolist() == [0, 4]
    (note,) = [note for note in result.report.skipped if note.name == "a_w"]
    assert note.reason == "without 8 of 16: output 'y' is not finite without them"
    table = next(rows for name, rows in result.report.sections.items() if name.endswith("removing"))
    assert table[0]["group"] == "a_w"
    assert table[0]["50%"] is None


def test_protected_and_frozen_groups_are_listed(file):
    result = onnxprune.measure_sensitivity(file, data=dataset(), amounts=[0.5], protect=["a_w", "nobody"])
    assert set(result.curves) == {"b_w"}
    reasons = {note.name: note.reason for note in result.report.skipped}
    assert reasons["a_w"] == "protected by 'a_w'"
    assert "output" in reasons["c_w"]
    assert "nobody" in reasons


def test_masks_of_one_tensor_at_a_time(file):
    result = onnxprune.measure_sensitivity(file, data=dataset(), amounts=[0.25, 0.5], pattern="unstructured")
    assert set(result.curves) == {"a_w", "b_w", "c_w"}
    assert result.curves["c_w"].removed.tolist() == [0, 30, 60]
    assert (result.curves["c_w"].increase[1:] > 0).all()


def test_noise_is_taken_by_name_and_said(file):
    result = onnxprune.measure_sensitivity(file, data="random:6", amounts=[0.5])
    assert set(result.curves) == {"a_w", "b_w"}
    assert any("random noise" in note.reason for note in result.report.skipped)


def test_batches_change_nothing_but_rounding(file):
    whole = onnxprune.measure_sensitivity(file, data=dataset(LABELS), amounts=[0.5])
    small = onnxprune.measure_sensitivity(file, data=dataset(LABELS), amounts=[0.5], batch=2, threads=2)
    for name, curve in whole.curves.items():
        np.testing.assert_allclose(small.curves[name].increase, curve.increase, rtol=1e-4)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux lists them")
def test_many_batches_leave_few_files_open(file):
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 40, before[1]))
    try:
        result = onnxprune.measure_sensitivity(file, data=dataset(samples=200), amounts=[0.5], batch=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert set(result.curves) == {"a_w", "b_w"}


def test_a_pattern_of_runs_has_one_amount(file):
    result = onnxprune.measure_sensitivity(file, data=dataset(), pattern="2:4")
    assert {name: curve.removed.tolist() for name, curve in result.curves.items()} == {
        "b_w": [0, 192], "c_w": [0, 60],
    }  # fmt: skip


def test_scores_of_weights_run_as_they_are_told(file):
    with pytest.raises(LimitMissed, match="limit of 1024"):
        onnxprune.measure_sensitivity(
            file, data=dataset(), pattern="unstructured", score="obs", memory_limit=1024
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"amounts": []}, UsageError, "amounts"),
        ({"amounts": [1.0]}, UsageError, "amounts"),
        ({"jobs": -1}, UsageError, "jobs"),
        ({"metric": "devergence"}, UsageError, "did you mean 'divergence'"),
        ({"output": "z"}, UsageError, "no output 'z'"),
        ({"pattern": "dead"}, UsageError, "nothing to measure"),
        ({"pattern": "layers"}, UsageError, "prune --pattern layers shows their scores"),
        ({"data": "random:0"}, UsageError, "random"),
        ({"batch": 0}, UsageError, "batch"),
        ({"metric": "cross_entropy"}, DataError, "needs labels"),
        ({"protect": ["*"]}, NothingToPrune, "no group to try"),
    ],
)
def test_nonsense_is_refused(file, options, error, message):
    with pytest.raises(error, match=message):
        onnxprune.measure_sensitivity(file, **{"data": dataset(), **options})


# --- the scope ----------------------------------------------------------------------------------------------


def test_the_scope_needs_data(file):
    with pytest.raises(UsageError, match="scope 'sensitivity' is measured on samples: give --data"):
        onnxprune.prune(onnxprune.load(file), amount=0.5, scope="sensitivity")


@pytest.mark.parametrize("target", ["amount", "target_macs", "target_params"])
def test_the_scope_takes_from_where_it_costs_least(tmp_path, target):
    """Most of the channels of b are nearly nothing: they go first."""
    model = network()
    for name, nearly_nothing in (("b_w", np.s_[:16]), ("c_w", np.s_[:, :16])):
        weight = model.graph.initializers[name]
        array = weight.const_value.numpy().copy()
        array[nearly_nothing] *= 1e-3
        weight.const_value = ir.tensor(array, name=name)
    result = onnxprune.prune(
        model, scope="sensitivity", data=dataset(), cache=tmp_path / "cache", align=1, **{target: 0.6}
    )
    removed = {group.name: len(group.removed) for group in result.plan.groups}
    assert result.report.passed
    assert removed["b_w"] >= 10
    assert removed["a_w"] <= removed["b_w"] / 2
    assert [row["group"] for row in result.report.sections["sensitivity"]].count("a_w") >= 4
    assert list((tmp_path / "cache").iterdir())
    if target != "amount":
        field = target.removeprefix("target_")
        before, after = result.plan.predicted
        assert getattr(after, field) <= 0.6 * getattr(before, field)
    assert "cache" not in result.plan.recipe


@pytest.mark.parametrize(
    ("pattern", "score"), [("unstructured", "l2"), ("block:2x2", "l1"), ("unstructured", "wanda")]
)
def test_the_scope_shares_zeros_out(file, pattern, score):
    """Tensors give what costs least, and together what was asked for."""
    model = onnxprune.load(file)
    result = onnxprune.prune(
        model, pattern=pattern, score=score, scope="sensitivity", data=dataset(), amount=0.4, seed=1
    )
    masks = result.plan.masks
    assert sum(m.size - m.kept for m in masks.values()) / sum(m.size for m in masks.values()) >= 0.38
    assert len({round(1 - m.kept / m.size, 1) for m in masks.values()}) > 1
    assert result.report.sections["sensitivity"]


@pytest.mark.parametrize(
    ("pattern", "data", "message"),
    [
        ("2:4", True, "same share everywhere"),
        ("unstructured", False, "give --data"),
    ],
)
def test_the_scope_of_zeros_refuses_nonsense(file, pattern, data, message):
    options = {"data": dataset()} if data else {}
    with pytest.raises(UsageError, match=message):
        onnxprune.prune(
            onnxprune.load(file), pattern=pattern, scope="sensitivity",
            amount=None if pattern == "2:4" else 0.5, **options,
        )  # fmt: skip


def test_a_group_without_any_trial_stays_whole(file, monkeypatch):
    plain = workbench.Cutter.without

    def without(self, trial):
        if trial.subject == "a_w":
            raise DataError("no room")
        return plain(self, trial)

    monkeypatch.setattr(workbench.Cutter, "without", without)
    result = onnxprune.prune(onnxprune.load(file), amount=0.25, scope="sensitivity", data=dataset())
    groups = {group.name: group for group in result.plan.groups}
    assert len(groups["a_w"].removed) == 0
    assert groups["a_w"].skipped == "no trial without some of its channels could be measured"
    assert len(groups["b_w"].removed) > 0


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("pattern", ["channels", "unstructured"])
def test_samples_are_of_the_types_that_the_model_takes(dtype, pattern):
    proto = small_models.mlp()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(dtype), tensor.name)
        )
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    x = np.random.default_rng(0).standard_normal((16, 16)).astype(dtype)
    found = onnxprune.measure_sensitivity(
        ir.from_proto(proto), data=Dataset.from_arrays({"x": x}), pattern=pattern, amounts=(0.5,), align=1
    )
    assert set(found.curves) >= ({"fc1", "fc2"} if pattern == "channels" else {"fc1.weight"})


class Clock:
    """A clock on which every look takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def left_out(sensitivity):
    return {skip.name: skip.reason for skip in sensitivity.report.skipped if skip.name in ("a_w", "b_w")}


def test_when_the_time_is_over_every_group_was_tried_once_before_any_twice(file, monkeypatch, tmp_path):
    amounts = [0.25, 0.5, 0.75]
    monkeypatch.setattr(curves, "time", Clock())
    result = onnxprune.measure_sensitivity(
        file, data=dataset(), amounts=amounts, time_limit=2, cache=tmp_path / "cache"
    )
    assert [row["group"] for row in found(result)] == ["a_w", "b_w"]
    assert left_out(result) == dict.fromkeys(("a_w", "b_w"), "2 of its trials left out: the 2 s were over")
    monkeypatch.undo()
    later = onnxprune.measure_sensitivity(file, data=dataset(), amounts=amounts, cache=tmp_path / "cache")
    assert later.report.sections["setting"]["from_cache"] == 2
    assert [row["group"] for row in found(later)] == ["a_w"] * 3 + ["b_w"] * 3


def test_a_group_that_was_not_reached_is_said_to_be_left_out(file, monkeypatch):
    monkeypatch.setattr(curves, "time", Clock())
    result = onnxprune.measure_sensitivity(file, data=dataset(), amounts=[0.5], time_limit=1)
    assert list(result.curves) == ["a_w"]
    assert left_out(result) == {"b_w": "1 of its trials left out: the 1 s were over"}


def test_no_time_is_refused(file):
    with pytest.raises(UsageError, match="time_limit is a number of seconds above 0, not 0"):
        onnxprune.measure_sensitivity(file, data=dataset(), time_limit=0)
