"""The accuracy benchmark: what is run, what counts as done, and how runs become a table."""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accuracy import run as benchmark
from accuracy.grid import MODELS, Model, Run, runs
from accuracy.page import about, page
from accuracy.table import Figure, cells, lines, rows_as_json, table
from rows import Row, Rows, digest, outcome
from small_models import mlp

import onnxprune

SMALL = Model("small", "data")
DENSE = Run(SMALL, "", "", "none", 0)


def a_run(seed: int = 0, score: str = "l2", repair: str = "none", **options: Any) -> Run:
    return Run(SMALL, "2:4", score, repair, seed, {"pattern": "2:4", "score": score, **options})


def measured(top1: float, **more: float) -> Row:
    figures = {"agreement": 0.75, "seconds": 1.5, "macs_kept": 1.0, "parameters_kept": 0.5, **more}
    return {"top1": top1, "memory_peak_mib": 100.0, "samples": 1000, "source": "now", **figures}


# --- the grid -----------------------------------------------------------------------------------------------


def test_no_two_runs_share_a_key() -> None:
    keys = [run.key for model in MODELS for run in runs(model)]
    assert len(keys) == len(set(keys))


def test_the_dense_model_comes_first() -> None:
    for model in MODELS:
        first, *others = runs(model)
        assert not first.options
        assert all(run.options for run in others)


def test_there_are_three_seeds_where_there_is_chance_and_only_there() -> None:
    seeds: dict[tuple[str, str, str], set[int]] = {}
    for run in runs(MODELS[1]):
        seeds.setdefault((run.way, run.score, run.repair), set()).add(run.seed)
    assert seeds["2:4", "l2", "none"] == {0}
    for where in (("2:4", "l2", "reconstruct"), ("2:4", "random", "none"), ("2:4", "obs", "none")):
        assert seeds[where] == {0, 1, 2}


def test_only_runs_that_look_at_data_are_given_any() -> None:
    for run in runs(MODELS[1]):
        looks = run.score in ("wanda", "obs") or "recover" in run.options
        assert run.calibrated is looks, run.key


def test_heads_are_for_models_that_have_some() -> None:
    with_heads = {model.name for model in MODELS if any("heads" in run.way for run in runs(model))}
    assert with_heads == {"digits_vit", "fashion_vit"}


def test_quick_is_a_part_of_the_whole() -> None:
    whole = {run.key for run in runs(MODELS[1])}
    quick = [run.key for run in runs(MODELS[1], quick=True)]
    assert set(quick) < whole
    assert len(quick) < len(whole) / 4


@pytest.mark.parametrize(
    ("only", "wanted"),
    [
        ("", True),
        ("small", True),
        ("small/2:4/obs", True),
        ("small/*/none/", True),
        ("other,2:4", True),
        ("small/*/reconstruct/", False),
        ("other", False),
    ],
)
def test_only_names_runs_by_parts_of_their_key(only: str, wanted: bool) -> None:
    assert benchmark.wanted(a_run(score="obs"), only) is wanted
    assert benchmark.wanted(DENSE, only)


# --- what has been done is not done again -------------------------------------------------------------------


def test_a_row_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = Rows(path, "now")
    assert rows.find(a_run(), "files") is None
    rows.add(a_run(), "files", {"top1": 0.5})
    for found in (rows, Rows(path, "now")):
        assert found.find(a_run(), "files") == {"top1": 0.5, "source": "now"}


def test_another_seed_option_or_file_is_another_run(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl", "now")
    rows.add(a_run(), "files", {"top1": 0.5})
    for other in (a_run(seed=1), a_run(repair="bias"), a_run(scope="global")):
        assert rows.find(other, "files") is None
    assert rows.find(a_run(), "other files") is None


def test_a_row_of_another_source_counts_only_where_it_may(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for source, top1 in (("older", 0.3), ("old", 0.4), ("older", 0.5)):
        Rows(path, source).add(a_run(), "files", {"top1": top1})
    assert Rows(path, "now").find(a_run(), "files") is None
    stale = Rows(path, "now", stale=True)
    assert stale.find(a_run(), "files") == {"top1": 0.5, "source": "older"}  # the latest
    stale.add(a_run(), "files", {"top1": 0.6})
    assert stale.find(a_run(), "files") == {"top1": 0.6, "source": "now"}


def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = Rows(path, "now")
    rows.add(a_run(0), "files", {"top1": 0.5})
    rows.add(a_run(1), "files", {"top1": 0.6})
    path.write_text(path.read_text()[:-20])
    again = Rows(path, "now")
    assert again.find(a_run(0), "files") is not None
    assert again.find(a_run(1), "files") is None
    again.add(a_run(1), "files", {"top1": 0.7})
    found = Rows(path, "now").find(a_run(1), "files")
    assert found == {"top1": 0.7, "source": "now"}


def test_the_digest_depends_on_contents_and_names(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = digest(tmp_path.iterdir())
    assert digest(sorted(tmp_path.iterdir(), reverse=True)) == before
    (tmp_path / "b").write_text("3")
    changed = digest(tmp_path.iterdir())
    (tmp_path / "b").rename(tmp_path / "c")
    assert len({before, changed, digest(tmp_path.iterdir())}) == 3


# --- one run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "output", "errors", "row"),
    [
        (0, 'a warning\n{"top1": 0.5}\n', "", {"top1": 0.5}),
        (-9, "", "", {"error": "the process died of signal 9"}),
        (1, "", "Traceback\nE: 9 GiB\n", {"error": "the process ended with status 1: E: 9 GiB"}),
        (0, "", "", {"error": "the process ended with status 0: nothing said"}),
    ],
)  # fmt: skip
def test_however_a_process_ends_there_is_a_row(status: int, output: str, errors: str, row: Row) -> None:
    assert outcome(status, output, errors) == row


@pytest.fixture
def small_benchmark(tmp_path: Path) -> argparse.Namespace:
    """A folder as train.py writes it, with a small model and random data."""
    path = tmp_path / "small.onnx"
    path.write_bytes(mlp().SerializeToString())
    model = onnxprune.load(path)
    name, shape = model.graph.inputs[0].name, list(model.graph.inputs[0].shape)[1:]
    samples = np.random.default_rng(0).standard_normal((64, *shape)).astype(np.float32)
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "eval.npz", **{name: samples, "label": np.arange(64) % 2})
    np.savez(tmp_path / "data" / "calibration-0.npz", **{name: samples[:16]})
    return argparse.Namespace(models=tmp_path, force=False, timeout=300.0, jobs=1)


@pytest.mark.long
def test_runs_are_processes_and_a_failure_is_a_row(
    small_benchmark: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Rows(small_benchmark.models / "rows.jsonl", "now")
    good, bad = a_run(), a_run(score="nonsense")
    benchmark.run_model(SMALL, [DENSE, good, bad], rows, small_benchmark)
    files = digest(benchmark.files_of(small_benchmark.models, SMALL))
    dense, row, failure = (rows.find(run, files) for run in (DENSE, good, bad))
    assert dense is not None
    assert row is not None
    assert failure is not None
    assert dense["samples"] == row["samples"] == 64
    assert 0 < dense["top1"] < 1
    assert abs(row["top1"] - dense["top1"]) <= 1 - row["agreement"] < 1
    assert row["memory_peak_mib"] >= row["memory_before_mib"] > 0
    assert 0.4 < row["parameters_kept"] < 1
    assert row["macs_kept"] == 1
    assert failure["error"].startswith("UsageError: ")
    assert "'nonsense'" in failure["error"]

    def never(*_: object) -> Row:
        raise AssertionError("this has been done")

    monkeypatch.setattr(benchmark, "measure", never)
    benchmark.run_model(SMALL, [DENSE, good, bad], rows, small_benchmark)


# --- the page -----------------------------------------------------------------------------------------------


def test_seeds_become_mean_and_spread() -> None:
    values = [0.80, 0.90, 0.85]
    (line,) = lines([(a_run(seed), measured(value)) for seed, value in enumerate(values)])
    figure = line.figure("top1")
    assert figure == Figure(statistics.fmean(values), statistics.stdev(values))
    assert figure.percent() == "85.0 ± 5.0"
    assert cells(line, 0.90)[3:6] == ["85.0 ± 5.0", "94.4 ± 5.6", "75.0 ± 0.0"]


def test_one_seed_has_no_spread() -> None:
    (line,) = lines([(a_run(), measured(0.9))])
    assert cells(line, 1.0)[3] == "90.0"


def test_what_a_line_says_of_time_and_memory() -> None:
    pairs = [(a_run(seed), measured(0.5, seconds=seed + 1, memory_peak_mib=100 + seed)) for seed in range(3)]
    (line,) = lines(pairs)
    assert cells(line, 1.0)[6:] == ["2.0", "102", "1.000", "0.500"]  # the mean, the largest


def test_a_run_that_failed_counts_in_no_mean_and_is_named() -> None:
    pairs: list[tuple[Run, Row | None]] = [
        (DENSE, {"top1": 0.9, "samples": 1000}),
        (a_run(0), measured(0.9)),
        (a_run(1), {"error": "ProofError: no"}),
        (a_run(2), None),
        (a_run(0, score="obs"), {"error": "ProofError: no"}),
        (a_run(0, score="wanda"), None),
    ]
    text = table(lines(pairs))
    assert "| 2:4 | l2 |  | 90.0 (1 of 3 runs) | 100.0 |" in text
    assert "| 2:4 | obs |  | failed |" in text
    assert "wanda" not in text
    assert "- `ProofError: no`: 2:4, l2 (1); 2:4, obs (1)\n" in text


def test_every_line_of_a_table_has_the_same_cells() -> None:
    pairs = [
        (DENSE, {"top1": 0.9, "samples": 9}),
        (a_run(), measured(0.9)),
        (a_run(score="obs"), {"error": "?"}),
    ]
    rows = [line for line in table(lines(pairs)).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1


def test_a_page_says_what_it_lacks_and_how_it_was_made() -> None:
    model = MODELS[0]
    pairs: list[tuple[Run, Row | None]] = [
        (Run(model, "", "", "none", 0), {"top1": 0.9, "samples": 1000, "source": "now"}),
        (a_run(), {**measured(0.8), "source": "earlier"}),
        (a_run(1), None),
    ]
    facts = about(lambda name: f"1.0 of {name}", "a system", "now")
    records = {model.name: {"data": "some digits", "training": "some epochs", "training_seconds": 120}}
    text = page([(model, pairs)], records, facts)
    assert "2 of 3 runs have been done. 1 of them were done with earlier states" in text
    assert "for want of model or data: digits_vit, fashion_resnet, fashion_vit, text_direction." in text
    assert "Data: some digits. Training: some epochs, 2 minutes. Judged on 1,000 samples." in text
    assert f"## {model.name}\n" in text
    assert "1.0 of onnxruntime" in text


def test_the_raw_rows_are_json() -> None:
    pairs: list[tuple[Run, Row | None]] = [(a_run(1), measured(0.5)), (a_run(2), None)]
    read = json.loads(rows_as_json({"source": "now", "models": {}}, pairs))
    (row,) = read["rows"]
    assert read["source"] == "now"
    assert (row["model"], row["pattern"], row["seed"], row["top1"]) == ("small", "2:4", 1, 0.5)
    assert row["options"]["score"] == "l2"


# --- data ---------------------------------------------------------------------------------------------------


def test_fashion_mnist_is_read_from_idx_files(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from accuracy.train import DEVIATION, MEAN, MissingData, read_fashion

    pixels = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    images = b"\0\0\x08\x03" + np.array([2, 28, 28], ">u4").tobytes() + pixels.tobytes()
    labels = b"\0\0\x08\x01" + np.array([2], ">u4").tobytes() + bytes([7, 3])
    with pytest.raises(MissingData, match="apt-get install dataset-fashion-mnist"):
        read_fashion(tmp_path, "train")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    read, classes = read_fashion(tmp_path, "train")
    assert read.shape == (2, 1, 28, 28)
    assert read.dtype == np.float32
    np.testing.assert_allclose(read[:, 0] * DEVIATION + MEAN, pixels / 255, atol=1e-6)
    assert classes.tolist() == [7, 3]


def test_calibration_samples_differ_by_seed_and_carry_no_labels(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from accuracy.train import CALIBRATION, SEEDS, write_data

    training = np.arange(1000, dtype=np.float32)[:, None]
    write_data(tmp_path, {"x": training[:3], "label": np.zeros(3)}, {"x": training})
    drawn = []
    for seed in range(SEEDS):
        with np.load(tmp_path / f"calibration-{seed}.npz") as file:
            assert file.files == ["x"]
            drawn.append(set(file["x"].ravel().tolist()))
    assert [len(each) for each in drawn] == [CALIBRATION] * SEEDS
    assert len(set.union(*drawn)) > CALIBRATION
