"""What is built is what is here: a package that is not listed would be missing from the wheel."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_package_is_listed():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {file.parent.relative_to(ROOT) for file in (ROOT / "onnxprune").rglob("__init__.py")}
    expected = {".".join(folder.parts) for folder in folders} | {"onnxprune_cli"}
    assert set(settings["tool"]["setuptools"]["packages"]) == expected


def test_every_file_beside_the_code_is_listed():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = {
        ROOT.joinpath(*package.split("."), name)
        for package, names in settings["tool"]["setuptools"]["package-data"].items()
        for name in names
    }
    found = {
        file
        for file in (ROOT / "onnxprune").rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    }
    assert found == listed
