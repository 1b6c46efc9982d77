"""Every change of the file system, in everything that writes, fails once, fails from then on, or is the last.

What must hold: inputs stay as they are; every name holds the old thing or the new one, whole; what fails says
so in one line and leaves nothing; what is killed leaves temporary names at most; and the next run leaves
exactly what an undisturbed one does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from bench import CHANGES, Bench, Trial
from tasks import make_inputs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="tasks are done in forks")

WAYS = ["kill", "torn", "short", "full", "broken"]

#: Tasks whose outputs appear together, and the file that comes last, if there is one.
WHOLE = {
    "inline": "model.onnx", "external": "model.onnx", "with_plan": "model.onnx", "with_reports": "model.onnx",
    "reports": None, "plan": None, "folder": "models/a/model.onnx",
}  # fmt: skip


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"))
    make_inputs(bench.inputs)
    yield bench
    bench.close()


def disturb(trial: Trial, way: str) -> None:
    """Disturb a task at every point, with nothing in the place of outputs and with something."""
    bad = []
    for before in ({}, trial.old) if trial.old else ({},):
        operations = trial.operations_over(before)
        assert len(operations) >= 3, "it writes, flushes and renames at least"
        for at, name in enumerate(operations, start=1):
            if name == "write" or way not in ("torn", "short"):
                found = trial.violations(at, way, before)
                bad += [f"{way} at {at} of {len(operations)}, {name}: {each}" for each in found]
    assert bad == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", list(WHOLE))
def test_outputs_appear_together_or_not_at_all(bench: Bench, task: str, way: str) -> None:
    disturb(Trial(bench, task, commit=WHOLE[task]), way)


@pytest.mark.parametrize("way", CHANGES)
def test_an_input_that_changes_is_noticed_or_was_read(bench: Bench, way: str) -> None:
    """Whatever happens to the data file of the input: the output is that of the old one, or there is none."""
    disturb(Trial(bench, "from_external"), way)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", ["cache", "run_folder"])
def test_what_is_kept_is_taken_up_again(bench: Bench, task: str, way: str) -> None:
    disturb(Trial(bench, task, kept=True), way)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_checkpoints_are_taken_up_again(bench: Bench, way: str) -> None:
    pytest.importorskip("torch")
    disturb(Trial(bench, "checkpoint", kept=True), way)


def test_the_shim_sees_a_writer_that_is_careless(bench: Bench) -> None:
    """Each way to disturb finds something in a writer that opens its output and writes."""
    for way in ("kill", "torn", "full", "broken"):
        trial = Trial(bench, "careless")
        found = [trial.violations(at, way, trial.old) for at in range(1, len(trial.operations) + 1)]
        assert any(found), way
