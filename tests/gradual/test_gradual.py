"""Pruning while tuning, in one run: what is gone at each milestone, stays gone, and is in the file."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from learners import load, same_weights, samples, tuning, weights_of, zeros_are_the_masks

import onnxprune
from onnxprune.data import Dataset
from onnxprune.errors import MissingExtra, ProofError, TuningError, UsageError
from onnxprune.gradual import deciders
from onnxprune.gradual.deciders import Found, Zeros
from onnxprune.ops.weights import find_weights
from onnxprune.patterns import count_bad_blocks, count_bad_runs, parse_pattern
from onnxprune.schedule import Schedule
from onnxprune.tuning.loop import tune
from onnxprune.types import Mask


class Recorder:
    """Keeps the masks that were decided at each milestone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.masks: list[Mapping[str, Mask]] = []
        decide = Zeros.decide

        def recording(decider: Zeros, *arguments: Any) -> Found | None:
            found = decide(decider, *arguments)
            if found is not None:
                self.masks.append(found.masks)
            return found

        monkeypatch.setattr(Zeros, "decide", recording)


def gradually(model: ir.Model, data: Any, **options: Any) -> onnxprune.PruneResult:
    """Small milestones, no samples set aside."""
    usual = {"frequency": 2, "warm_up": 0.2, "freeze": 0.2, "validation": None, "settings": tuning()}
    return onnxprune.prune_gradually(model, data=data, **{**usual, **options})


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "unstructured", "amount": 0.9},
        {"pattern": "unstructured", "amount": 0.8, "scope": "global", "schedule": "linear", "initial": 0.2},
        {"pattern": "unstructured", "amount": 0.7, "score": "random", "schedule": "geometric"},
        {"pattern": "unstructured", "amount": 0.7, "score": "lamp", "scope": "global"},
        {"pattern": "unstructured", "amount": 0.7, "score": "movement"},
        {"pattern": "unstructured", "amount": 0.7, "score": "movement_distance", "scope": "global"},
        {"pattern": "unstructured", "amount": 0.6, "score": "taylor"},
        {"pattern": "block:2x2", "amount": 0.75},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_the_share_at_each_milestone_is_that_of_the_schedule(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Recorder(monkeypatch)
    result = gradually(load("mlp"), samples("mlp"), **options)

    timing = {"warm_up": 0.2, "frequency": 2, "freeze": 0.2, "initial": options.get("initial", 0.0)}
    shape = options.get("schedule", "cubic")
    milestones = Schedule(options["amount"], 12, shape, **timing).milestones()
    rows = result.report.sections["milestones"]
    assert [(row["step"], row["share"]) for row in rows] == [tuple(milestone) for milestone in milestones]
    assert len(record.masks) == len(milestones) > 2
    block = 4 if options["pattern"].startswith("block") else 1
    for masks, (_, share) in zip(record.masks, milestones, strict=True):
        sizes = {name: mask.size for name, mask in masks.items()}
        gone = {name: mask.size - mask.kept for name, mask in masks.items()}
        if options.get("scope") == "global":
            total = sum(array.size for name, array in weights_of(load("mlp")).items() if array.ndim == 2)
            assert abs(sum(gone.values()) - share * total) <= 1
        elif options.get("score") != "taylor":
            for name, size in sizes.items():
                assert abs(gone[name] - share * size) <= max(0.5, block)
    for before, after in pairwise(record.masks):
        for name, mask in before.items():
            assert not (after[name].unpack() & ~mask.unpack()).any(), "what is gone came back"
    assert {name: mask.bits.tobytes() for name, mask in result.plan.masks.items()} == {
        name: mask.bits.tobytes() for name, mask in record.masks[-1].items()
    }
    zeros_are_the_masks(result.model, result.plan.masks)


@pytest.mark.parametrize(
    "options",
    [
        {"pattern": "unstructured", "amount": 0.6, "score": "obs"},
        {"pattern": "unstructured", "amount": 0.6, "scope": "sensitivity"},
        {"pattern": "2:4", "score": "wanda"},
        {"pattern": "block:2x2", "amount": 0.5, "score": "obs"},
    ],
    ids=lambda options: " ".join(map(str, options.values())),
)
def test_scores_and_scopes_that_are_measured_work_at_each_milestone(options: dict[str, Any]) -> None:
    """With obs, weights that stay make up for those that go, in the middle of a run."""
    result = gradually(load("mlp"), samples("mlp"), frequency=4, **options)
    zeros_are_the_masks(result.model, result.plan.masks)
    kept, size = (sum(getattr(m, what) for m in result.plan.masks.values()) for what in ("kept", "size"))
    assert 1 - kept / size == pytest.approx(options.get("amount", 0.5), abs=0.03)


def test_weights_learn_and_what_is_not_masked_keeps_learning() -> None:
    model = load("mlp")
    result = gradually(model, samples("mlp"), pattern="unstructured", amount=0.5)
    before, after = weights_of(model), weights_of(result.model)
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    assert same_weights(model, load("mlp")), "the given model was changed"


@pytest.mark.parametrize(("pattern", "steps"), [("2:4", [0.25, 0.5]), ("1:4", [0.25, 0.5, 0.75])])
def test_n_of_m_grows_weight_by_weight_of_each_run(
    pattern: str, steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Recorder(monkeypatch)
    result = gradually(load("mlp"), samples("mlp"), pattern=pattern, schedule="linear", frequency=1)

    wanted = parse_pattern(pattern)
    for use in find_weights(result.model)[0]:
        assert count_bad_runs(result.plan.masks[use.tensor].unpack(), wanted, use.summed_axis) == 0
    shares = [{1 - mask.kept / mask.size for mask in masks.values()} for masks in record.masks]
    assert all(len(each) == 1 for each in shares)
    assert sorted(set().union(*shares)) == steps
    for each, row in zip(shares, result.report.sections["milestones"], strict=True):
        assert max(each) <= row["share"] + 1e-9, "ahead of the schedule"
    zeros_are_the_masks(result.model, result.plan.masks)


def test_blocks_stay_whole() -> None:
    result = gradually(load("mlp"), samples("mlp"), pattern="block:2x4", amount=0.5)
    for use in find_weights(result.model)[0]:
        kept = result.plan.masks[use.tensor].unpack()
        assert count_bad_blocks(kept, parse_pattern("block:2x4"), use.output_axis, use.summed_axis) == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("residual_net", {"pattern": "channels", "target_macs": 0.4, "align": 1}),
        ("residual_net", {"pattern": "channels", "amount": 0.5, "score": "movement", "align": 2}),
        ("residual_net", {"pattern": "channels", "target_params": 0.5, "scope": "global"}),
        ("attention", {"pattern": "heads", "amount": 0.5}),
        ("attention", {"pattern": "channels", "amount": 0.5, "score": "taylor"}),
        ("mlp", {"pattern": "channels", "amount": 0.75}),
    ],
)
def test_channels_are_masks_first_and_the_cut_equals_them(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, data = load(name), samples(name, labels=False)
    result = gradually(model, data, **options)

    checks = {check.name: check for check in result.report.checks}
    assert checks["cut equals the masked model"].passed
    assert checks["cut equals its exact twin"].passed
    rows = result.report.sections["milestones"]
    left = [row["MACs left"] for row in rows]
    assert left == sorted(left, reverse=True)
    assert left[-1] < left[0] < 1
    if "target_macs" in options:
        assert left[-1] <= options["target_macs"]
    before, after = result.plan.predicted
    assert after.macs / before.macs == pytest.approx(left[-1])
    onnxprune.save(model, tmp_path / "model.onnx")
    report = onnxprune.save_pruned(
        result, tmp_path / "small.onnx", against=tmp_path / "model.onnx", plan_folder=tmp_path / "plan"
    )
    assert report.passed
    again = onnxprune.apply_plan(model, onnxprune.load_plan(tmp_path / "plan"))
    assert {n: a.shape for n, a in weights_of(again.model).items()} == {
        n: a.shape for n, a in weights_of(result.model).items()
    }


def test_zeros_are_written_verified_and_the_plan_applies_again(tmp_path: Path) -> None:
    model = load("mlp")
    onnxprune.save(model, tmp_path / "model.onnx")
    result = gradually(model, samples("mlp"), pattern="unstructured", amount=0.9)
    report = onnxprune.save_pruned(
        result, tmp_path / "small.onnx", against=tmp_path / "model.onnx", plan_folder=tmp_path / "plan"
    )
    assert report.passed
    assert "declared zeros" in {check.name for check in report.checks}
    zeros_are_the_masks(onnxprune.load(tmp_path / "small.onnx"), result.plan.masks)
    again = onnxprune.apply_plan(model, onnxprune.load_plan(tmp_path / "plan"))
    zeros_are_the_masks(again.model, result.plan.masks)
    assert "tuning" not in again.plan.recipe
    assert any("not tuned" in entry.reason for entry in again.report.skipped)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {"pattern": "unstructured", "amount": 0.8, "score": "movement"}),
        ("mlp", {"pattern": "2:4", "schedule": "linear"}),
        ("residual_net", {"pattern": "channels", "amount": 0.5}),
    ],
)
@pytest.mark.parametrize("killed_at", [1, 5, 9])
def test_a_run_that_was_killed_goes_on_bit_for_bit(
    name: str, options: dict[str, Any], killed_at: int, tmp_path: Path
) -> None:
    model, data = load(name), samples(name)
    every = {"settings": tuning(checkpoint_every=2), **options}
    whole = gradually(model, data, **every)

    def kill(standing: Any) -> None:
        if standing.step == killed_at:
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        gradually(model, data, checkpoint=folder, told=kill, **every)
    resumed = gradually(model, data, checkpoint=folder, resume=True, **every)

    assert same_weights(whole.model, resumed.model)
    assert resumed.report.sections["milestones"] == whole.report.sections["milestones"]
    for ours, theirs in zip(resumed.plan.groups, whole.plan.groups, strict=True):
        assert np.array_equal(ours.removed, theirs.removed)


def test_a_checkpoint_of_another_schedule_is_refused(tmp_path: Path) -> None:
    model, data = load("mlp"), samples("mlp")
    gradually(model, data, pattern="unstructured", amount=0.8, checkpoint=tmp_path / "run")
    with pytest.raises(TuningError, match="schedule"):
        gradually(model, data, pattern="unstructured", amount=0.7, checkpoint=tmp_path / "run", resume=True)


def test_best_weights_are_taken_after_the_last_pruning_alone() -> None:
    result = gradually(
        load("mlp"), samples("mlp"), pattern="unstructured", amount=0.9, validation=0.25,
        settings=tuning(steps=20, evaluate_every=1),
    )  # fmt: skip
    last = result.report.sections["milestones"][-1]["step"]
    assert result.report.sections["tuning"]["weights of step"] >= last
    zeros_are_the_masks(result.model, result.plan.masks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "dead"}, "nothing to tune"),
        ({"pattern": "channels"}, "give one of amount|in one round"),
        ({"pattern": "unstructured", "amount": 0.5, "schedule": "qubic"}, "did you mean 'cubic'"),
        ({"pattern": "unstructured", "amount": 0.5, "recover": "bias"}, "tuning takes its place"),
        ({"pattern": "unstructured", "amount": 0.5, "scor": "l1"}, "scor"),
        ({"pattern": "unstructured", "amount": 0.5, "score": "movement", "warm_up": 0.0}, "give a warm-up"),
        ({"pattern": "unstructured", "amount": 0.5, "rounds": 2}, "rounds prune before their first step"),
        ({"pattern": "unstructured", "target_macs": 0.5}, "zeros alone change neither"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    if options.get("schedule") is None and options.get("warm_up") == 0.0:
        options = {**options, "initial": 0.1}
    with pytest.raises(UsageError, match=message):
        gradually(load("mlp"), samples("mlp"), **options)


@pytest.mark.parametrize("rounds", [1, 2])
def test_noise_is_told(rounds: int) -> None:
    options = {"frequency": None, "warm_up": None, "rounds": rounds, "validation": 0.25}
    result = gradually(load("mlp"), "random:64", pattern="unstructured", amount=0.5, **options)
    assert any("noise" in entry.reason or "random" in entry.reason for entry in result.report.skipped)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="in one process"):
        gradually(load("mlp"), samples("mlp"), pattern="unstructured", amount=0.5)


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "torch" else real(name, *more)
    )
    with pytest.raises(MissingExtra, match=r"tuning needs torch: pip install 'onnxprune\[torch\]'"):
        gradually(load("mlp"), samples("mlp"), pattern="unstructured", amount=0.5)


def test_what_zeros_can_not_stand_for_stays_whole_with_the_reason() -> None:
    """Places inside heads are summed over between queries and keys, where there is no weight."""
    result = gradually(load("attention"), samples("attention"), pattern="head_dim", amount=0.5, align=1)
    reasons = [entry.reason for entry in result.plan.skipped if "without a weight" in entry.reason]
    assert len(reasons) == 1
    assert sum(len(gone) > 0 for gone in result.plan.removed.values()) == 1, "values can be masked"


def test_a_cut_that_differs_from_the_masked_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison can fail: here a weight that sums over masked channels is forgotten."""
    whole = deciders.zeros_of

    def forgetful(*arguments: Any) -> dict[str, Any]:
        masks = whole(*arguments)
        return {name: masks[name] for name in list(masks)[1:]}

    monkeypatch.setattr(deciders, "zeros_of", forgetful)
    with pytest.raises(ProofError, match="cut equals the masked model"):
        gradually(load("residual_net"), samples("residual_net"), pattern="channels", amount=0.5)


def test_a_network_that_was_trained_keeps_its_accuracy_where_one_shot_loses_it() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(512) % 4
    points = random.standard_normal((4, 16))[labels] + 0.6 * random.standard_normal((512, 16))
    held_out = Dataset.from_arrays({"x": points[:128].astype(np.float32), "label": labels[:128]})
    learned = Dataset.from_arrays({"x": points[128:].astype(np.float32), "label": labels[128:]})

    def right(model: ir.Model) -> float:
        return float(onnxprune.validate(model, data=held_out, metric="top1").overall.model.value)

    dense = tune(load("mlp"), learned, tuning(150, learning_rate=1e-2)).model
    wish = {"pattern": "unstructured", "amount": 0.9}
    one_shot = onnxprune.prune(dense, **wish).model
    gradual = onnxprune.prune_gradually(dense, data=learned, settings=tuning(150, learning_rate=1e-2), **wish)

    assert right(dense) > 0.95
    assert right(one_shot) < right(dense) - 0.1
    assert right(gradual.model) > right(dense) - 0.05
