"""The latency benchmark: bisection on a clock, what rivals keep, what counts as done, and the page."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from latency import run as benchmark
from latency.equal_time import TOLERANCE, meet
from latency.grid import QUESTIONS, TARGETS, Run, runs
from latency.models import source_of
from latency.page import RIVALS, page, prediction, verdict
from latency.rivals import Made, Rival, counts_of, importance_kept
from rows import Row, Rows, as_json
from small_models import residual_net

import onnxprune

FACTS = {
    "processor": "a processor", "cores": 2, "system": "a system", "python": "3", "versions": {},
    "source": "now",
}  # fmt: skip


# --- the same time ------------------------------------------------------------------------------------------


class FakeClock:
    """Models are the numbers of channels that stay, of 64; their time is what a function makes of it."""

    def __init__(self, time_of: Any, step: int = 1, most: float = 1.0) -> None:
        self.time_of, self.step, self.most = time_of, step, most
        self.timed: list[int] = []

    def make(self, amount: float) -> int | None:
        return None if amount > self.most else max(1, round(64 * (1 - amount) / self.step) * self.step)

    def ratio(self, kept: int) -> float:
        self.timed.append(kept)
        return float(self.time_of(kept / 64))

    def meet(self, target: float, **options: Any) -> Any:
        return meet(self.make, self.ratio, lambda kept: kept, target, **options)


@pytest.mark.parametrize("target", [0.9, 0.5, 0.3])
def test_bisection_finds_the_amount_whose_time_is_the_target(target: float) -> None:
    found = FakeClock(lambda kept: 0.1 + 0.9 * kept**2).meet(target, most=20)
    assert target <= found.given.ratio <= target * (1 + TOLERANCE) + 0.03
    assert found.given is found.slower


def test_a_step_that_jumps_over_the_target_leaves_both_sides_and_the_slower_is_given() -> None:
    found = FakeClock(lambda kept: kept, step=16).meet(0.6)
    assert (found.slower.made, found.faster.made) == (48, 32)
    assert found.given.made == 48


def test_no_model_is_timed_twice() -> None:
    clock = FakeClock(lambda kept: kept, step=16)
    found = clock.meet(0.6)
    assert len(clock.timed) == len(set(clock.timed)) == found.trials


def test_where_time_does_not_fall_everywhere_the_best_of_all_trials_counts() -> None:
    def cliff(kept: float) -> float:
        return 0.62 if kept == 0.5 else 0.9 if 0.25 < kept < 0.5 else kept

    found = FakeClock(cliff, step=4).meet(0.6)
    assert found.given.ratio == 0.62
    assert found.given.made == 32


def test_what_cannot_be_cut_is_an_upper_end_and_no_trial() -> None:
    clock = FakeClock(lambda kept: kept, most=0.3)
    found = clock.meet(0.5)
    assert found.faster is None
    assert found.given.ratio == pytest.approx(0.7, abs=0.02)
    assert min(clock.timed) >= 0.7 * 64 - 1


def test_where_nothing_takes_as_long_the_slowest_is_given() -> None:
    found = FakeClock(lambda kept: 0.1 * kept).meet(0.5)
    assert found.slower is None
    assert found.given.ratio == max(0.1 * kept / 64 for kept in range(1, 65) if kept == found.given.made)
    assert found.given.made >= 63


def test_no_more_models_are_timed_than_allowed() -> None:
    clock = FakeClock(lambda kept: 0.1 + 0.9 * kept**3)
    assert clock.meet(0.123456, most=4).trials == len(clock.timed) == 4


# --- rivals -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    path.write_bytes(residual_net(width=32).SerializeToString())
    return path


@pytest.mark.parametrize("name", RIVALS)
def test_a_rival_makes_smaller_models_with_larger_amounts(name: str, small: Path, tmp_path: Path) -> None:
    rival = Rival(name, small, tmp_path, {"align": 1})
    little, much = rival.make(0.2), rival.make(0.6)
    assert little is not None
    assert much is not None
    assert sum(counts_of(little)) < sum(counts_of(much))
    assert little.path.stat().st_size > much.path.stat().st_size
    assert sum(counts_of(Made(small, None))) == 0


def test_a_rival_that_cannot_remove_as_much_says_so(small: Path, tmp_path: Path) -> None:
    assert Rival("global MACs", small, tmp_path, {"floor": 0.9}).make(0.9) is None


def test_a_rival_that_removes_nothing_is_the_original(small: Path, tmp_path: Path) -> None:
    assert Rival("uniform", small, tmp_path, {}).make(0.001) == Made(small, None)


def test_importance_kept_is_that_of_reports(small: Path) -> None:
    model = onnxprune.load(small)
    result = onnxprune.prune(model, amount=0.5, align=1)
    plan = result.plan
    assert importance_kept(model, plan) == pytest.approx(result.report.sections["importance"]["share kept"])
    assert importance_kept(model, None) == pytest.approx(1.0)
    at_random = onnxprune.plan(model, amount=0.5, align=1, score="random")
    assert importance_kept(model, at_random) < importance_kept(model, plan)


# --- what is run, and what has been -------------------------------------------------------------------------


def test_no_two_runs_share_a_key_and_quick_is_a_part_of_each_question() -> None:
    keys = [run.key for question in QUESTIONS for run in runs(question)]
    assert len(keys) == len(set(keys))
    for question in QUESTIONS:
        quick = [run.key for run in runs(question, quick=True)]
        assert set(quick) < {run.key for run in runs(question)}


@pytest.fixture
def folder(tmp_path: Path) -> argparse.Namespace:
    """A folder with the files of one trained model, empty as they are."""
    for name in ("fashion_vit.onnx", "fashion/eval.npz", *(f"fashion/calibration-{n}.npz" for n in range(3))):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return argparse.Namespace(
        models=tmp_path, zoo=tmp_path, python=Path("python"), timeout=60.0, quick=False
    )  # fmt: skip


def about_fashion_vit(question: str) -> list[Run]:
    wanted = ("fashion_vit", TARGETS[0])
    return [run for run in runs(question) if (run.model, run.options["target"]) == wanted]


def test_torch_pruning_is_given_the_time_and_the_model_of_the_median_seed(folder: argparse.Namespace) -> None:
    rows = Rows(folder.models / "rows.jsonl", "now")
    (asked,) = (
        r for r in runs("torch_pruning") if (r.model, r.options["target"]) == ("fashion_vit", TARGETS[0])
    )
    assert benchmark.at_what_was_delivered(asked, rows, folder) is None
    accuracies = [
        r for r in runs("accuracy") if (r.model, r.options["target"]) == ("fashion_vit", TARGETS[0])
    ]
    for run, ratio, top1 in zip(accuracies, (0.62, 0.58, 0.60), (0.5, 0.6, 0.7), strict=True):
        files = benchmark.digest(benchmark.files_of(run, folder))
        rows.add(run, files, {"latency": {"ratio": ratio, "top1": top1}})
        assert benchmark.find(run, rows, folder) is not None
    assert benchmark.at_what_was_delivered(asked, rows, folder) is None  # the delivered models are gone
    for run in accuracies:
        path = benchmark.delivered(run, folder)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    known = benchmark.at_what_was_delivered(asked, rows, folder)
    assert known is not None
    assert (known.options["at"], known.options["beside"]) == (0.6, 2)
    assert known.options["ours"] == pytest.approx(0.6)
    task = benchmark.task_of(known, folder)
    assert task["delivered"] == str(benchmark.delivered(accuracies[2], folder))
    assert len(task["calibration"]) == 3


def test_a_task_of_one_seed_has_its_calibration_samples(folder: argparse.Namespace) -> None:
    (run,) = (r for r in runs("accuracy") if r.key == f"accuracy/fashion_vit/{TARGETS[0]}/1")
    task = benchmark.task_of(run, folder)
    assert task["calibration"].endswith("calibration-1.npz")
    json.dumps(task)


def test_exports_that_are_there_are_taken(tmp_path: Path) -> None:
    assert source_of("resnet18", tmp_path) == tmp_path / "resnet18.onnx"
    (tmp_path / "full_resnet18.ts.onnx").touch()
    assert source_of("resnet18", tmp_path) == tmp_path / "full_resnet18.ts.onnx"


# --- Torch-Pruning's side -----------------------------------------------------------------------------------


@pytest.mark.long
def test_a_module_gets_the_function_of_its_file_and_keeps_it_when_norms_are_unfolded(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from latency.torch_side import build, estimate, load_weights, norms_of, unfold

    torch.manual_seed(0)
    trained = build("fashion_resnet")
    images = torch.randn(64, 1, 28, 28)
    for _, norm in norms_of(trained):  # as training leaves them: no statistic or scale is a constant
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.bias)
    trained.eval()
    path = tmp_path / "exported.onnx"
    onnxprune.save(onnxprune.import_model(trained, images[:1]).model, path)
    rebuilt = build("fashion_resnet").eval()
    load_weights(rebuilt, path)
    with torch.no_grad():
        wanted = trained(images)
        assert torch.allclose(rebuilt(images), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
        unfold(rebuilt, images)
        assert torch.allclose(rebuilt(images), wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))
        assert all(float(norm.running_var.std()) > 0 for _, norm in norms_of(rebuilt))
        estimate(rebuilt, images)  # over what they were taken from: nothing changes but for the batches
        change = (rebuilt(images) - wanted).abs().max() / wanted.abs().max()
    assert float(change) < 0.05


@pytest.mark.long
def test_a_transformer_gets_the_matrices_that_its_file_holds_transposed(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from latency.torch_side import build, load_weights

    torch.manual_seed(0)
    trained, images = build("fashion_vit").eval(), torch.randn(4, 1, 28, 28)
    for parameter in trained.parameters():
        if parameter.ndim == 1:  # equal constants would be stored once
            torch.nn.init.normal_(parameter)
    path = tmp_path / "exported.onnx"
    onnxprune.save(onnxprune.import_model(trained, images[:1]).model, path)
    rebuilt = build("fashion_vit").eval()
    with torch.no_grad():
        wanted = trained(images)
        assert not torch.allclose(rebuilt(images), wanted, atol=1e-3)
        load_weights(rebuilt, path)
        assert torch.allclose(rebuilt(images), wanted, atol=1e-4)


# --- the page -----------------------------------------------------------------------------------------------


def figures(ratio: float, **more: Any) -> dict[str, Any]:
    return {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "control": 1.0, **more}


def delivered_row(ratio: float = 0.5, importance: float = 0.8, rival: float = 0.7) -> Row:
    search = {
        "seconds": 50.0, "importance": importance, "latency": {"points timed": 7},
        "rounds": [{"predicted share": 0.49, "measured share": 0.5}],
    }  # fmt: skip
    others = {name: figures(0.5, importance=rival, **{"beside ours": 1.01}) for name in RIVALS}
    return {"cold": figures(ratio, **search), "warm": figures(ratio, **search), **others, "source": "now"}


def a_run(question: str, model: str = "resnet50", **options: Any) -> Run:
    return Run(question, model, 0, {"target": 0.5, **options})


def test_nothing_holds_of_no_runs_and_of_those_that_failed() -> None:
    assert "**no**, 0 of 0" in verdict("?", [])
    text = page(
        [(a_run("delivered"), delivered_row()), (a_run("delivered", "vit"), {"error": "E: no"})], FACTS
    )
    assert "- Ratios lie in 0.45 to 0.52, cold and warm: **no**, 1 of 2." in text
    assert "- More importance kept than by uniform: **no**, 1 of 2." in text
    assert "- Failed: delivered/vit/0.5/0: `E: no`" in text


@pytest.mark.parametrize(
    ("row", "holds"),
    [
        (delivered_row(), (True, True)),
        (delivered_row(ratio=0.53), (False, True)),
        (delivered_row(ratio=0.44), (False, True)),
        (delivered_row(importance=0.6), (True, False)),
        (delivered_row(importance=0.7), (True, False)),
    ],
)
def test_what_was_delivered_is_judged(row: Row, holds: tuple[bool, bool]) -> None:
    text = page([(a_run("delivered"), row)], FACTS)
    answers = ["**yes**, 1 of 1" if hold else "**no**, 0 of 1" for hold in holds]
    assert f"cold and warm: {answers[0]}." in text
    assert f"More importance kept than by uniform: {answers[1]}." in text


def test_accuracy_is_the_mean_over_the_seeds_and_no_rival_may_have_more() -> None:
    pairs = []
    for seed, (ours, uniform, by_macs) in enumerate([(0.8, 0.9, 0.7), (0.9, 0.8, 0.7), (0.85, 0.8, 0.9)]):
        row = {"dense": 0.95, "latency": figures(0.6, top1=ours, MACs=0.5), "source": "now"}
        row |= {
            name: figures(0.6, top1=top1, MACs=0.5, **{"beside ours": 1.0})
            for name, top1 in zip(RIVALS, (uniform, by_macs), strict=True)
        }
        pairs.append((Run("accuracy", "fashion_vit", seed, {"target": 0.6}), row))
    text = page(pairs, FACTS)
    assert (
        "| fashion_vit | 0.6 | target in time | 0.600, 0.600, 0.600 |  | 0.500 | 85.0 ± 5.0 | 95.0 |" in text
    )
    assert "At least as accurate as uniform: **yes**, 1 of 1" in text
    worse = [(run, {**row, "uniform": {**row["uniform"], "top1": 0.86}}) for run, row in pairs]
    assert "At least as accurate as uniform: **no**, 0 of 1" in page(worse, FACTS)


def test_torch_pruning_is_compared_with_its_better_self() -> None:
    run = a_run("torch_pruning", "fashion_resnet", at=0.6, ours=0.8)
    found = figures(0.61, top1=0.2, **{"beside ours": 1.0, "top1 with statistics by seed": [0.7, 0.8]})
    row = {
        "unpruned": figures(1.0, top1=0.9),
        "global": found,
        "local": {"error": "it fails"},
        "source": "now",
    }
    text = page([(run, row)], FACTS)
    assert "| 20.0 | 75.0 ± 7.1 | 80.0 |" in text
    assert "| local | failed: it fails |" in text
    assert "the better of both: **yes**, 1 of 1" in text
    better = a_run("torch_pruning", "fashion_resnet", at=0.6, ours=0.74)
    assert "the better of both: **no**, 0 of 1" in page([(better, row)], FACTS)


def test_errors_of_predictions_are_relative_to_what_was_measured() -> None:
    rounds = [
        {"predicted share": 0.45, "measured share": 0.5}, {"predicted share": 0.5, "measured share": 0.5}
    ]  # fmt: skip
    row = {"uniform 0.5": figures(0.4, predicted=0.45), "delivered": figures(0.5, rounds=rounds)}
    text = prediction([(a_run("prediction"), row)])
    assert "| resnet50 | 0.450 / 0.400 (+12.5%) | 0.450 / 0.500 (-10.0%) | 0.500 / 0.500 (+0.0%) |" in text
    assert "(cuts and first rounds): **no**, 1 of 2" in text
    assert "The mean error is 11.2%" in text or "The mean error is 11.3%" in text


@pytest.mark.parametrize(
    ("status", "written", "holds"), [(3, False, True), (0, True, False), (3, True, False)]
)
def test_a_target_out_of_reach_must_exit_3_and_write_nothing(status: int, written: bool, holds: bool) -> None:
    row = {"command": "onnxprune prune", "status": status, "said": ["can't"], "written": written}
    text = page([(a_run("unreachable"), row)], FACTS)
    assert f"nothing written: {'**yes**' if holds else '**no**'}" in text
    assert "    $ onnxprune prune\n    can't\n" in text


def test_every_line_of_each_table_has_the_same_cells() -> None:
    text = page([(a_run("delivered"), delivered_row()), (a_run("delivered", "vit"), delivered_row())], FACTS)
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1


def test_rows_become_json_even_with_numpy_free_figures() -> None:
    read = json.loads(as_json({"source": "now"}, [{"ratio": float(np.float64(0.5)), "nested": {"a": [1]}}]))
    assert read["rows"] == [{"ratio": 0.5, "nested": {"a": [1]}}]
    assert math.isclose(read["rows"][0]["ratio"], 0.5)
