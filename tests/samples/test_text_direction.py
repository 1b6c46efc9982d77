from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
WHEEL = "rapidocr_onnxruntime-1.4.4-py3-none-any.whl"


def test_lines_are_what_the_model_expects(run_script: Any, needs: Any, tmp_path: Path) -> None:
    needs("PIL")

    run_script("text-direction/lines.py", "--out", tmp_path)

    with np.load(tmp_path / "eval.npz") as data:
        images, labels, segments = data["x"], data["label"], data["segment"]
    assert images.shape == (600, 3, 48, 192)
    assert images.dtype == np.float32
    assert -1 <= images.min() < -0.5 < 0.5 < images.max() <= 1
    assert np.bincount(labels).tolist() == [300, 300]
    assert set(segments.tolist()) == {"words", "numbers"}
    # padding is on the right and zero, which is grey: some lines are short
    assert (images[:, :, :, -1] == 0).all(axis=(1, 2)).any()
    with np.load(tmp_path / "calibration.npz") as data:
        assert data.files == ["x"]


def test_the_same_seed_gives_the_same_lines(run_script: Any, needs: Any, tmp_path: Path) -> None:
    needs("PIL")
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        run_script("text-direction/lines.py", "--out", tmp_path / folder, "--seed", seed, "--count", 10)

    a, b, c = (np.load(tmp_path / folder / "eval.npz")["x"] for folder in "abc")

    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_another_model_in_the_wheel_is_refused(run_script: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / WHEEL, "w") as archive:
        archive.writestr(MEMBER, b"not the model")

    done = run_script("text-direction/fetch.py", "--out", tmp_path, check=False)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "text-direction.onnx").exists()


@pytest.mark.long
@pytest.mark.xdist_group("samples")
def test_the_model_is_right_once_it_is_repaired(text_rows: list[dict[str, Any]]) -> None:
    dense, channels, repaired, zeros, obs = text_rows

    assert dense["metric"] > 0.98
    assert channels["metric"] < 0.7  # as lean as the model is, it bears little without repair
    assert repaired["metric"] > 0.95
    assert repaired["macs"] == channels["macs"] <= 0.75 * dense["macs"]
    assert repaired["file_bytes"] < 0.9 * dense["file_bytes"]
    assert zeros["metric"] < 0.8
    assert obs["metric"] > 0.97
    assert obs["zstd_bytes"] < 0.75 * dense["zstd_bytes"]
    assert min(row["checks_passed"] for row in text_rows[1:]) > 1
