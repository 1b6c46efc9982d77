"""Running the sample scripts as a user would: in processes of their own, from some other folder."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "samples"

RunScript = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def run_script() -> RunScript:
    """Run ``samples/SCRIPT`` and return what it printed; a bad exit status fails the test."""

    def run(script: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SAMPLES / script), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f"{script}: {done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the sample runs share, so that nothing is trained or fetched twice."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="session")
def needs() -> Callable[..., None]:
    """Skip the test where a module is not installed."""

    def require(*modules: str) -> None:
        for module in modules:
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")

    return require


@pytest.fixture(scope="session")
def digits_rows(run_script: RunScript, needs: Callable[..., None], demo_folder: Path) -> list[dict[str, Any]]:
    needs("torch", "onnxscript", "sklearn")
    folder = demo_folder / "digits"
    folder.mkdir(exist_ok=True)
    run_script("digits/run.py", "--out", folder, "--json", folder / "rows.json")
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows


@pytest.fixture(scope="session")
def text_rows(run_script: RunScript, needs: Callable[..., None], demo_folder: Path) -> list[dict[str, Any]]:
    needs("PIL")
    folder = demo_folder / "text-direction"
    fetched = run_script("text-direction/fetch.py", "--out", folder, check=False)
    if fetched.returncode:
        pytest.skip(f"the model can't be had here: {fetched.stderr.strip().splitlines()[-1]}")
    run_script("text-direction/run.py", "--out", folder, "--json", folder / "rows.json")
    rows: list[dict[str, Any]] = json.loads((folder / "rows.json").read_text())
    return rows
