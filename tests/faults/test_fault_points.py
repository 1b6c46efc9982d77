"""Every change of the file system, in everything that writes, fails once, fails from then on, or is the last.

What must hold: inputs stay as they are; every name holds the old thing or the new one, whole; what fails says
so in one line and leaves nothing; what is killed leaves temporary names at most; and the next run leaves
exactly what an undisturbed one does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest
from bench import CHANGES, Bench, State, Trial

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="tasks are done in forks")

WAYS = ["kill", "torn", "short", "full", "broken"]

#: Tasks whose outputs appear together, and the file that comes last, if there is one.
WHOLE = {
    "inline": "model.onnx", "external": "model.onnx", "with_plan": "model.onnx", "with_reports": "model.onnx",
    "reports": None, "plan": None, "folder": "models/a/model.onnx",
}  # fmt: skip


#: Disturbances that are tried each time; all others by ``make faults``.
QUICK = {(task, way) for task in ("external", "with_reports") for way in ("kill", "broken")}
QUICK |= {("inline", way) for way in WAYS} | {("run_folder", "kill"), ("cache", "kill")}


def trials(tasks: Iterable[str]) -> list[Any]:
    """Return pairs of a task and a way to disturb it, most of them marked as long."""
    pairs = [(task, way) for task in tasks for way in WAYS]
    return [
        pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.long, id="-".join(pair))
        for pair in pairs
    ]


def disturb(trial: Trial, way: str, *, quick: bool = False) -> None:
    """Disturb a task at every point, with nothing in the place of outputs and with something.

    Quickly, every second point has nothing there, and the others something.
    """
    bad = []
    states: list[State] = [{}, trial.old] if trial.old else [{}]
    for half, before in enumerate(states):
        operations = trial.operations_over(before)
        assert len(operations) >= 3, "it writes, flushes and renames at least"
        for at, name in enumerate(operations, start=1):
            left_out = quick and len(states) == 2 and at % 2 != half
            if not left_out and (name == "write" or way not in ("torn", "short")):
                found = trial.violations(at, way, before)
                bad += [f"{way} at {at} of {len(operations)}, {name}: {each}" for each in found]
    assert bad == []


@pytest.mark.parametrize(("task", "way"), trials(WHOLE))
def test_outputs_appear_together_or_not_at_all(bench: Bench, task: str, way: str) -> None:
    disturb(Trial(bench, task, commit=WHOLE[task]), way, quick=(task, way) in QUICK)


@pytest.mark.parametrize("way", CHANGES)
def test_an_input_that_changes_is_noticed_or_was_read(bench: Bench, way: str) -> None:
    """Whatever happens to the data file of the input: the output is that of the old one, or there is none."""
    disturb(Trial(bench, "from_external"), way, quick=True)


@pytest.mark.parametrize(("task", "way"), trials(["cache", "run_folder"]))
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
