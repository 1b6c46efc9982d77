"""Two thousand mutants a run, and tests that what goes wrong is seen."""

from __future__ import annotations

import copy
import os
import random
import signal
import time

import pytest

from fuzzing import loop, plain
from fuzzing.inputs import KINDS, Kind
from onnxprune.errors import DataError

#: Others than those that were found wrong: those are tests of their own, where they belong.
SEED = 20261121
INPUTS = 2000
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_mutants_are_read_or_refused(part, tmp_path):
    outcome = loop.fuzz(SEED, part, INPUTS // PARTS, step=PARTS, keep=tmp_path / "failed")
    assert outcome.executions == INPUTS // PARTS
    assert not outcome.failures, outcome.told()
    assert outcome.accepted > outcome.executions / 20
    assert outcome.refused > outcome.executions / 3


def test_an_input_is_made_of_its_number(tmp_path):
    def contents(folder):
        return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    for number in range(60):
        made = []
        for name in ("a", "b"):
            folder = tmp_path / f"{number}{name}"
            folder.mkdir()
            kind, _ = loop.make(7, number, folder)
            made.append((kind, contents(folder)))
        assert made[0] == made[1]


def misbehave(folder, _rng, told):
    number = int((folder / "number").read_text())
    if number == 1:
        raise DataError("data: refused")
    if number == 2:
        error = DataError("data")
        error.args = ("data: two\nlines",)  # past what makes messages plain
        raise error
    if number == 3:
        raise KeyError("x")
    if number == 4:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 5:
        time.sleep(60)
    if number == 6:
        bytearray(4 << 30)
    if number == 7:
        told("run")
        os.abort()


def test_what_goes_wrong_is_seen(tmp_path, monkeypatch):
    current = [0]

    def write(folder, _rng):
        (folder / "number").write_text(str(current[0]))

    monkeypatch.setattr(loop, "SECONDS", 2.0)
    monkeypatch.setattr(loop, "KINDS", {"odd": Kind(1.0, write, misbehave)})
    monkeypatch.setattr(loop, "kind_of", lambda _rng: "odd")
    seen = {}
    for number in range(8):
        current[0] = number
        outcome = loop.fuzz(0, 0, 1, keep=tmp_path / str(number))
        assert outcome.executions == 1
        seen[number] = [*outcome.failures, *(f"contained: {what}" for what in outcome.contained)]
        assert (tmp_path / str(number) / "0-0" / "what.txt").exists() == bool(seen[number])
    assert seen[0] == seen[1] == []
    assert "no plain line" in seen[2][0]
    assert "KeyError at" in seen[3][0]
    assert seen[4] == ["odd read: died of SIGSEGV"]
    assert seen[5] == ["odd read: took too long"]
    assert "MemoryError" in seen[6][0]
    assert seen[7] == ["contained: odd run: died of SIGABRT"]


def test_a_child_that_died_is_replaced(monkeypatch):
    def read(folder, _rng, _told):
        if (folder / "n").read_text() == "die":
            os.kill(os.getpid(), signal.SIGSEGV)

    def write(folder, rng):
        (folder / "n").write_text("die" if rng.random() < 0.3 else "live")

    monkeypatch.setattr(loop, "KINDS", {"odd": Kind(1.0, write, read)})
    monkeypatch.setattr(loop, "kind_of", lambda _rng: "odd")
    outcome = loop.fuzz(0, 0, 40)
    assert outcome.executions == 40
    ((what, numbers),) = outcome.failures.items()
    assert what == "odd read: died of SIGSEGV"
    assert outcome.accepted == 40 - len(numbers)
    assert len(set(numbers)) == len(numbers)
    assert "FAILED" in outcome.told()


def test_shares_of_kinds():
    assert sum(kind.share for kind in KINDS.values()) == pytest.approx(1)


def test_a_mutant_changes_nothing_that_the_next_one_is_made_of():
    before = copy.deepcopy(plain._VALUES)
    for number in range(200):
        plain.mutate_values({"a": [1], "b": {"c": []}}, random.Random(number), 6)  # noqa: S311 # not a secret
    assert before == plain._VALUES
