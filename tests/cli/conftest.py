"""A command line in this process, and models for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import small_models

from onnxprune_cli.main import execute


@dataclass(frozen=True)
class Ran:
    """What a command line left: its status, stdout and stderr."""

    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        found: dict[str, Any] = json.loads(self.out, parse_constant=_no_constant)
        return found

    @property
    def error(self) -> str:
        """The one line on stderr, beside those of progress, which a busy machine prints."""
        assert self.err.endswith("\n")
        lines = [line for line in self.err.splitlines() if not line.startswith("info: ")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: "), self.err
        return lines[0].removeprefix("error: ")


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``onnxprune`` with arguments of any kind."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        status = execute([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models in files, by name; read-only."""
    folder = tmp_path_factory.mktemp("models")
    names = ("residual_net", "mlp", "attention", "frozen_net")
    return {
        name: small_models.save_model(getattr(small_models, name)(), folder / f"{name}.onnx")
        for name in names
    }
