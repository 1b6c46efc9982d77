from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.mark.long
@pytest.mark.xdist_group("samples")
def test_one_table_for_both_samples(
    run_script: Any, demo_folder: Path, digits_rows: list[dict[str, Any]], text_rows: list[dict[str, Any]]
) -> None:
    # both samples ran into this folder: nothing is trained or fetched again
    done = run_script("demo.py", "--out", demo_folder)

    table = done.stdout[done.stdout.rindex("before and after") :]
    for row in (*digits_rows, *text_rows):
        assert row["model"] in table
        assert f"{row['params'] / 1e3:,.0f} k" in table
