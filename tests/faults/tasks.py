"""Everything that writes, as tasks in the current folder: each reads ``in/`` and writes ``out/``.

A task returns an exit status; 1 means that it was refused in one line on stderr, as the command line does it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import records
import small_models

from onnxprune.compression.folder import RunFolder
from onnxprune.errors import OnnxPruneError
from onnxprune.messages import one_line
from onnxprune.model.atomic import output_errors, write_whole
from onnxprune.model.io import load
from onnxprune.model.together import Together, new_folder
from onnxprune.pipeline import save_examined
from onnxprune.plans import load_plan, save_plan
from onnxprune.report.forms import write_forms
from onnxprune.result_cache import ResultCache
from onnxprune.types import Report
from onnxprune_cli.main import execute

OUT = Path("out")

RECIPE = """
[model]
path = "external.onnx"

[run]
folder = "../out/run"
pairs = 20

[[stages]]
kind = "prune"
amount = 0.3
align = 1

[[stages]]
name = "zeros"
kind = "prune"
pattern = "unstructured"
amount = 0.5

[output]
model = "../out/model.onnx"
plan = "../out/model.plan"
"""

#: Those that are drawn quickly; all are written by the same piece.
_FORMS = ("json", "junit")


def _one_line(work: Callable[..., None]) -> Callable[..., int]:
    """Turn a refusal into a status and a line, as the command line does."""

    def task(*arguments: Any) -> int:
        try:
            work(*arguments)
        except OnnxPruneError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            return error.exit_status
        return 0

    return task


def _model(*, external: bool | None, plan: bool = False, forms: bool = False, name: str = "model") -> None:
    def place(together: Together) -> None:
        if plan:
            save_plan(load_plan("in/model.plan"), OUT / "model.plan", together=together)
        if forms:
            write_forms(records.passing_record(), {form: OUT / f"report.{form}" for form in _FORMS}, together)

    save_examined(
        load(f"in/{name}.onnx"),
        OUT / "model.onnx",
        Report(""),
        lambda _: [],
        once_passed=place,
        external_data=external,
    )


@_one_line
def inline() -> None:
    _model(external=False)


@_one_line
def external() -> None:
    _model(external=True)


@_one_line
def from_external() -> None:
    _model(external=True, name="external")


@_one_line
def with_plan() -> None:
    _model(external=True, plan=True)


@_one_line
def with_reports() -> None:
    _model(external=False, plan=True, forms=True)


@_one_line
def reports() -> None:
    write_forms(records.failing_record(), {form: OUT / f"report.{form}" for form in _FORMS})


@_one_line
def plan() -> None:
    save_plan(load_plan("in/model.plan"), OUT / "model.plan")


@_one_line
def folder() -> None:
    """A folder of models, with their plans, that was not there."""
    with Together() as together, new_folder(OUT / "models", together) as scratch:
        for name in ("a", "b"):
            with output_errors(OUT / "models"):
                (scratch / name).mkdir()
            write_whole(scratch / name / "model.onnx", name.encode() * 100)
        save_plan(load_plan("in/model.plan"), OUT / "a.plan", together=together)


@_one_line
def cache() -> None:
    found = ResultCache(OUT / "cache", ["loss"])
    for key in ("aa", "bb", "cc"):
        if found.find(key) is None:
            found.store(key, {"loss": float(len(key))}, {})


@_one_line
def run_folder() -> None:
    """Two stages in the folder of a run, each with a file and a plan, and what they gave beside it."""
    with RunFolder(OUT / "run", resume=True).locked() as folder:
        results = []
        for stage in ("one", "two"):

            def make(work: Any, stage: str = stage) -> Mapping[str, Any]:
                write_whole(work.place / "model.onnx", stage.encode() * 100)
                save_plan(load_plan("in/model.plan"), work.place / "plan")
                return {"stage": stage}

            results.append(folder.result({"stage": stage}, make))
        contents = b"".join((result.folder / "model.onnx").read_bytes() for result in results)
        write_whole(OUT / "model.onnx", contents)


def command(*arguments: str) -> int:
    """A whole command line."""
    return execute(arguments)


def checkpoint() -> int:
    """A checkpoint that is written twice over."""
    import numpy as np

    from onnxprune.tuning.checkpoint import claimed, load, open_folder, save

    @_one_line
    def work() -> None:
        place = OUT / "checkpoint"
        open_folder(place, resume=True)
        with claimed(place):
            before = load(place, {"run": 1})
            for step in range(0 if before is None else before["step"], 2):
                save(place, {"run": 1}, {"step": step + 1, "weights": np.arange(100.0)})

    return work()


def careless() -> int:
    """What nobody should do, so that tests see it: write in place, and in pieces."""
    with (OUT / "model.onnx").open("wb", buffering=0) as file:
        for _ in range(3):
            file.write(b"new" * 100)
    return 0


TASKS: dict[str, Callable[..., int]] = {
    "inline": inline, "external": external, "from_external": from_external, "with_plan": with_plan,
    "with_reports": with_reports, "reports": reports, "plan": plan, "folder": folder, "cache": cache,
    "run_folder": run_folder, "checkpoint": checkpoint, "command": command, "careless": careless,
}  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Write what tasks read: a model, a plan of it, a model with external data, other data, a recipe."""
    import onnxprune
    from onnxprune.model.io import save

    folder.mkdir()
    small_models.save_model(small_models.mlp(), folder / "model.onnx")
    made = onnxprune.plan(load(folder / "model.onnx"), pattern="unstructured", amount=0.5)
    save_plan(made, folder / "model.plan")
    for name, seed in (("external", 1), ("other", 2)):
        small_models.save_model(small_models.mlp(seed), folder / "inline.onnx")
        _, data = save(load(folder / "inline.onnx"), folder / f"{name}.onnx", external_data=True)
        # a name that does not tell its contents, as other tools write it
        proto = onnx.load(folder / f"{name}.onnx", load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                entry.value = f"{name}.onnx.data" if entry.key == "location" else entry.value
        data.rename(folder / f"{name}.onnx.data")
        onnx.save(proto, folder / f"{name}.onnx")
    (folder / "inline.onnx").unlink()
    (folder / "other.onnx.data").rename(folder / "other.data")
    (folder / "other.onnx").unlink()
    (folder / "recipe.toml").write_text(RECIPE)
