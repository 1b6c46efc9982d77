"""Neither ``import onnxprune`` nor any ``--help`` waits for heavy packages."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "jinja2",
    "matplotlib",
    "ml_dtypes",
    "numpy",
    "onnx",
    "onnx_ir",
    "onnxruntime",
    "pydantic",
    "rich",
    "scipy",
    "torch",
)

COMMANDS = (
    "import", "inspect", "sensitivity", "prune", "apply", "finetune", "verify", "bench", "validate", "report",
)  # fmt: skip


def heavy_after(code: str) -> list[str]:
    """Run code in a fresh interpreter, and return the heavy packages that it imported."""
    probe = f"import json, sys\n{code}\nprint(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_import_is_light():
    assert heavy_after("import onnxprune; dir(onnxprune)") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_is_light(arguments):
    code = f"from onnxprune_cli.main import execute\nassert execute({arguments!r}) == 0"
    assert heavy_after(code) == []


def test_wrong_usage_is_light():
    code = "from onnxprune_cli.main import execute\nassert execute(['prune', 'm.onnx', '--amount', 'x']) == 2"
    assert heavy_after(code) == []


def test_the_probe_sees_a_heavy_import():
    assert "numpy" in heavy_after("import onnxprune; onnxprune.load_data")
    assert "onnx_ir" in heavy_after("from onnxprune import load")
