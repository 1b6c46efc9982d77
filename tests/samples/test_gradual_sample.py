from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.xdist_group("samples")
def test_all_ways_in_small(
    run_script: Callable[..., object], needs: Callable[..., None], tmp_path: Path
) -> None:
    needs("torch", "onnxscript", "sklearn")
    run_script(
        "gradual/run.py", "--out", tmp_path, "--amounts", "0.9", "--steps", "20", "--epochs", "3",
    )  # fmt: skip
    rows = json.loads((tmp_path / "residual.json").read_text())

    assert len(rows) == 8
    assert rows[0]["top1"] > 0.5
    for row in rows[1:]:
        assert row["zeros"] == pytest.approx(0.9, abs=1e-3), row["way"]
        assert (tmp_path / f"residual-{row['way'].replace(',', '').replace(' ', '-')}-0.9.onnx").exists()
    right = {row["way"]: row["top1"] for row in rows}
    assert right["lottery ticket"] > right["random ticket"] + 0.1
