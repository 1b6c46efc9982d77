"""What a run found, as its record tells it, and the reports that are drawn of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_projects import RECIPE, make_project

import onnxprune
from onnxprune.compression.recording import curves, trade_off
from onnxprune.record import Interval, Record, StageRecord, read_record
from onnxprune.report.html import html
from onnxprune.report.markdown import markdown

#: The same, where the stage that removes channels asks what each group costs, and no other stage follows.
SENSITIVE = RECIPE.replace(
    'amount = 0.1\nalign = 1\nrecover = "reconstruct"',
    'amount = 0.3\nalign = 1\nscope = "sensitivity"\ndata = "calibration.npz"',
)


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    project = make_project(tmp_path_factory.mktemp("recorded") / "project", SENSITIVE)
    onnxprune.compress(project.recipe)
    return read_record(project.folder / "report.json"), project.folder


def test_layers_are_those_of_the_model(record):
    run, _ = record
    assert [layer.name for layer in run.layers][:2] == ["stem_node", "block1.conv1_node"]
    assert sum(layer.macs for layer in run.layers) == run.models[0].macs
    assert sum(layer.macs_left for layer in run.layers) == run.models[-1].macs
    assert any(layer.width_left < layer.width for layer in run.layers)
    assert any(layer.sparsity > 0.1 for layer in run.layers)


def test_curves_come_from_the_stage_that_measured_them(record):
    run, folder = record
    assert {curve.name for curve in run.sensitivity} == {"stem", "block1.conv1", "block2.conv1"}
    for curve in run.sensitivity:
        assert list(curve.amount) == sorted(curve.amount)
        assert len(curve.amount) == len(curve.loss) > 1
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"Growth of {run.sensitivity[0].metric} by share removed" in page


def test_files_are_what_the_record_gives_again(record):
    run, folder = record
    assert (folder / "report.html").read_text(encoding="utf-8") == html(run)
    assert (folder / "report.md").read_text(encoding="utf-8") == markdown(run)


def test_candidates_cost_time_where_it_was_measured_and_else_size(record):
    run, _ = record
    interval = Interval(value=0.5, low=0.4, high=0.6, count=9)
    accuracy = Interval(value=0.9, low=0.8, high=1.0, count=9)
    models = [model.model_copy(update={"accuracy": accuracy, "latency_ratio": None}) for model in run.models]
    sizes = [model.size_bytes / models[0].size_bytes for model in models]
    by_size = trade_off(models)
    assert [(point.cost, point.cost_of, point.chosen) for point in by_size] == [
        (size, "size", place == len(models) - 1) for place, size in enumerate(sizes)
    ]
    later = [model.model_copy(update={"latency_ratio": interval}) for model in models[1:]]
    by_time = trade_off([models[0], *later])
    assert [(point.cost, point.cost_of) for point in by_time] == [
        (1.0, "time"),
        *[(0.5, "time")] * len(later),
    ]
    assert trade_off([run.models[0].model_copy(update={"accuracy": None})]) == ()


def test_trials_without_a_figure_are_left_out():
    rows = [
        {"group": "a", "removed_share": 0.5, "mse": 3.0, "increase": 2.0},
        {"group": "a", "removed_share": 0.25, "mse": 2.0, "increase": 1.0},
        {"group": "b", "removed_share": 0.5, "mse": None, "increase": None},
    ]
    stages = [
        StageRecord(name="first", kind="prune"),
        StageRecord(name="second", kind="prune", sections={"sensitivity": rows}),
    ]
    (curve,) = curves(stages)
    assert (curve.name, curve.amount, curve.loss, curve.metric) == (
        "a",
        (0.0, 0.25, 0.5),
        (0.0, 1.0, 2.0),
        "mse",
    )
    assert list(curves(stages[:1])) == []
