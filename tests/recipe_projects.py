"""Small projects with a recipe, for the tests of whole runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import small_models

from onnxprune.model.io import load

RECIPE = """
[model]
path = "model.onnx"

[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
metric = "agreement"

[run]
pairs = 20

[[stages]]
kind = "cleanup"

[[stages]]
kind = "prune"
amount = 0.1
align = 1
recover = "reconstruct"

[[stages]]
name = "zeros"
kind = "prune"
pattern = "unstructured"
amount = 0.2

[gates]
size_ratio = 0.95
agreement = 0.02

[output]
model = "small.onnx"
plan = "small.plan"
json = "report.json"
html = "report.html"
markdown = "report.md"
junit = "report.xml"
accepted = "accepted.json"
"""


@dataclass(frozen=True)
class Project:
    """A folder with a model, data and a recipe."""

    folder: Path

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.toml"

    @property
    def output(self) -> Path:
        return self.folder / "small.onnx"

    def digests(self) -> dict[str, str]:
        """Hashes of all files outside the run folder, by path."""
        files = [path for path in sorted(self.folder.rglob("*")) if path.is_file()]
        names = {path: path.relative_to(self.folder).as_posix() for path in files}
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path, name in names.items()
            if not name.startswith("run/")
        }


def make_project(folder: Path, text: str = RECIPE) -> Project:
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(small_models.residual_net(), folder / "model.onnx")
    load(folder / "model.onnx")
    random = np.random.default_rng(0)
    for name in ("calibration", "evaluation"):
        samples = random.standard_normal((60, 3, 8, 8)).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=samples, segment=np.repeat(["day", "night"], 30))
    (folder / "recipe.toml").write_text(text)
    return Project(folder)
