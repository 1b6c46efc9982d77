from __future__ import annotations

import sys
from pathlib import Path

import pytest

from onnxprune.errors import ImporterError
from onnxprune.importers import factory
from onnxprune.user_code import current_folder_importable


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; modules imported from it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def find(reference: str) -> object:
    with current_folder_importable():
        return factory.find(reference)[1]


def test_finds_modules_of_the_current_folder(package: Path) -> None:
    (package / "one").mkdir()
    (package / "one" / "two.py").write_text("class Outer:\n    inner = 5\n")

    assert find("one.two:Outer.inner") == 5


def test_says_where_it_looked_for_a_module(package: Path) -> None:
    with pytest.raises(ImporterError, match=rf"no module 'not_there' in {package}"):
        find("not_there:x")


def test_tells_a_missing_module_from_a_missing_dependency(package: Path) -> None:
    (package / "needs_more.py").write_text("import surely_not_installed\n")

    with pytest.raises(
        ImporterError, match="needs_more needs 'surely_not_installed', which is not installed"
    ):
        find("needs_more:x")


def test_names_the_exception_of_a_module_that_fails(package: Path) -> None:
    (package / "broken_module.py").write_text("raise ValueError('first line\\nsecond line')\n")

    with pytest.raises(ImporterError, match=r"importing broken_module raised ValueError: first line$"):
        find("broken_module:x")


def test_suggests_a_name(package: Path) -> None:
    (package / "with_factory.py").write_text("def build_model(): ...\n")

    with pytest.raises(ImporterError, match="did you mean 'build_model'"):
        find("with_factory:build_modle")


@pytest.mark.parametrize("reference", ["model", "a b:c", "module:", ":x", "model.tflite", "a:b:c"])
def test_refuses_what_is_no_reference(package: Path, reference: str) -> None:
    with pytest.raises(ImporterError, match="is no source"):
        find(reference)


def test_names_the_exception_of_a_call_that_fails() -> None:
    def build() -> None:
        raise KeyError("weights")

    with pytest.raises(ImporterError, match=r"m:build raised KeyError: 'weights'"):
        factory.call(build, "m:build")
