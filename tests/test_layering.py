"""Who may import whom, read from the sources: no layer knows a higher one, and no stage another stage."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = {"onnxprune": ROOT / "onnxprune", "onnxprune_cli": ROOT / "cli"}

#: From the lowest layer to the highest. A part may import parts of lower layers and of its own;
#: only the stages (the widest layer) do not import each other.
LAYERS = (
    ("messages",),
    ("errors",),
    ("cholesky", "data", "data_files", "machine", "npz", "outlines", "patterns", "reading",
     "record", "registry", "resident", "schedule", "spill", "types", "user_code"),
    ("containment",),
    ("model",),
    ("ops",),
    ("workers",),
    ("calibration", "cost", "executor", "feeds", "parts", "result_cache", "runtime"),
    ("allocate", "analyze", "branches", "importers", "measure", "plans", "prove", "quantization", "recover",
     "report", "rewrite", "scores", "sensitivity", "tuning", "verification"),
    ("planning",),
    ("proving", "pruning_report"),
    ("pruning",),
    ("pruning_channels", "pruning_layers", "pruning_weights"),
    ("pruners", "wishes"),
    ("gradual",),
    ("family", "family_survey", "finetuning", "gradual_pipeline", "inspection", "layer_changes", "pipeline",
     "plan_inspection", "quantizing", "repruning", "survey"),
    ("advice", "folders", "gates"),
    ("recipe",),
    ("compression", "integrations"),
    ("onnxprune",),  # the public API
    ("onnxprune_cli",),
)  # fmt: skip
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
STAGES = LAYERS[8]

#: Packages that only some parts, or packages within one, may import.
CONFINED = {
    "torch": ("executor", "importers", "ops.meanings", "scores", "tuning"),
    "onnxscript": ("importers",),
    "onnxruntime": ("runtime",),
    "click": ("onnxprune_cli",),
    "distributed": ("workers.cluster", "workers.depot"),
    "loky": ("workers.processes", "workers.setting"),
    "jinja2": ("report.html",),
    "markupsafe": ("report",),
    "rich": ("onnxprune_cli", "report"),
    "matplotlib": ("report",),
    "olive": ("integrations.olive",),
    "pydantic": ("compression", "gates", "plans", "recipe", "record"),
}


def part_of(module: str) -> str:
    """``onnxprune.model.io`` -> ``model``; the command line is one part."""
    names = module.split(".")
    return names[1] if names[0] == "onnxprune" and len(names) > 1 else names[0]


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere, in functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are banned"
            for alias in node.names:  # "from onnxprune import runtime" means the module
                is_part = node.module == "onnxprune" and alias.name in RANK
                yield f"onnxprune.{alias.name}" if is_part else str(node.module)


def _is_in(module: str, places: Iterable[str]) -> bool:
    """Whether a module is one of the places, or in one."""
    path = module if part_of(module) == "onnxprune_cli" else module.partition(".")[2]
    return any(f"{path}.".startswith(f"{place}.") for place in places)


def violations(sources: Mapping[str, str]) -> list[str]:
    """Return one line for each import that the layers forbid; ``sources`` are texts by module name."""
    found = []
    for module, text in sources.items():
        here = part_of(module)
        for imported in dict.fromkeys(imports(ast.parse(text))):
            package, there = imported.split(".")[0], part_of(imported)
            if package in CONFINED and not _is_in(module, CONFINED[package]):
                found.append(f"{module} imports {package}")
            if package not in SOURCES or here == there or module == "onnxprune":
                continue
            if there == "onnxprune" and here != "onnxprune_cli":
                found.append(f"{module} imports the public API")
            elif there not in RANK or RANK[there] > RANK[here] or (here in STAGES and there in STAGES):
                found.append(f"{module} imports {imported}")
    return found


def real_sources() -> dict[str, str]:
    sources = {}
    for package, folder in SOURCES.items():
        for file in folder.rglob("*.py"):
            names = [package, *file.relative_to(folder).with_suffix("").parts]
            sources[".".join(name for name in names if name != "__init__")] = file.read_text(encoding="utf-8")
    return sources


def test_layers_hold():
    assert violations(real_sources()) == []


def test_every_part_has_its_layer():
    assert {part_of(module) for module in real_sources()} <= RANK.keys()


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("onnxprune.model.io", "from onnxprune.ops.base import OpRule"),
        ("onnxprune.errors", "import onnxprune.types"),
        ("onnxprune.scores.magnitude", "from onnxprune.allocate.options import Options"),
        ("onnxprune.report.table", "def f():\n    from onnxprune.measure.latency import benchmark"),
        ("onnxprune.prove", "from onnxprune import pipeline"),
        ("onnxprune.prove", "from onnxprune import prune"),
        ("onnxprune.pipeline", "from onnxprune_cli.output import Output"),
        ("onnxprune.measure.latency", "import onnxruntime as ort"),
        ("onnxprune.prove", "def f():\n    from torch import nn"),
        ("onnxprune_cli.prune", "import torch.nn"),
        ("onnxprune.ops.conv", "import torch"),
        ("onnxprune.executor.module", "import onnxprune.tuning"),
        ("onnxprune.tuning.loop", "from onnxprune.scores import magnitude"),
        ("onnxprune.pruning", "from onnxprune.gradual import prune_gradually"),
        ("onnxprune.pipeline", "import click"),
        ("onnxprune.pipeline", "from olive.passes import Pass"),
        ("onnxprune.pipeline", "from onnxprune.integrations import olive"),
    ],
)
def test_a_forbidden_import_is_seen(module, text):
    assert len(violations({module: text})) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("onnxprune.ops.conv", "from onnxprune.ops.base import OpRule"),
        ("onnxprune.prove", "from onnxprune.runtime import open_session"),
        ("onnxprune.runtime.library", "import onnxruntime"),
        ("onnxprune.importers.source", "import torch"),
        ("onnxprune.ops.meanings.conv", "import torch"),
        ("onnxprune.executor.module", "import torch"),
        ("onnxprune.tuning.loop", "from onnxprune.executor.module import OnnxModule"),
        ("onnxprune_cli.prune", "def f():\n    from onnxprune import prune"),
    ],
)
def test_an_allowed_import_passes(module, text):
    assert violations({module: text}) == []
