"""Whole commands, disturbed: at every point, at any moment, by signals, by each other, by their surroundings.

These take long; ``make faults KILLS=300`` runs them all, with so many kills at random moments for each.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from bench import CHANGES, TEMPORARY, Bench, State, Trial, state
from test_fault_points import WAYS, disturb

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="signals and forks"),
]

KILLS = int(os.environ.get("ONNXPRUNE_KILLS", "8"))
GRACE_SECONDS = 5.0

PRUNE = ("prune", "in/model.onnx", "-o", "out/model.onnx", "--amount", "0.5", "-q")
EXTERNAL = (
    "prune",
    "in/external.onnx",
    "-o",
    "out/model.onnx",
    "--pattern",
    "2:4",
    "--plan",
    "out/p.plan",
    "-q",
)
QUANTIZE = ("quantize", "in/model.onnx", "-o", "out/model.onnx", "--form", "float16", "-q")
APPLY = ("apply", "in/model.plan", "in/model.onnx", "-o", "out/model.onnx", "--external-data", "-q")
COMPRESS = ("compress", "in/recipe.toml", "--resume", "-q")
COMMANDS = {"prune": PRUNE, "external": EXTERNAL, "quantize": QUANTIZE, "apply": APPLY, "compress": COMPRESS}


def outputs(folder: Path) -> State:
    """Everything but the folder of a run, which holds times."""
    return {name: contents for name, contents in state(folder).items() if not name.startswith("run/")}


def start(folder: Path, command: tuple[str, ...], **environment: str) -> subprocess.Popen[str]:
    """Start a command in a session of its own."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    temporary.mkdir(exist_ok=True)
    program = "import sys; from onnxprune_cli.main import run; sys.exit(run())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *command], cwd=folder, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary), **environment},
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for a command; return its status and its lines on stderr."""
    _, stderr = process.communicate(timeout=300)
    return process.returncode, [line for line in stderr.splitlines() if line.strip()]


def wait_until_it_works(folder: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a command waits for signals: it makes a folder for temporary files right before that."""
    while process.poll() is None and not any(folder.with_name(f"{folder.name}.tmp").iterdir()):
        time.sleep(0.01)


def undisturbed(bench: Bench, command: tuple[str, ...]) -> tuple[State, float]:
    """Return what a command leaves, and how long it takes."""
    folder = bench.folder({})
    began = time.monotonic()
    status, lines = finish(start(folder, command))
    assert status == 0, lines
    return outputs(folder / "out"), time.monotonic() - began


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", list(COMMANDS))
def test_commands_at_every_point(bench: Bench, name: str, way: str) -> None:
    disturb(Trial(bench, "command", COMMANDS[name], kept=name == "compress", state_of=outputs), way)


@pytest.mark.parametrize("way", CHANGES)
@pytest.mark.parametrize("name", ["external", "compress"])
def test_an_input_that_changes_while_a_command_works(bench: Bench, name: str, way: str) -> None:
    disturb(Trial(bench, "command", COMMANDS[name], kept=name == "compress", state_of=outputs), way)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_that_is_killed_at_any_moment(bench: Bench, name: str) -> None:
    """And killed again and again, compress arrives at the same bytes."""
    expected, seconds = undisturbed(bench, COMMANDS[name])
    moments = random.Random(name)  # noqa: S311
    folder = bench.folder({})
    for _ in range(KILLS):
        process = start(folder, COMMANDS[name])
        time.sleep(moments.uniform(0, seconds * 1.05))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        left = {path: text for path, text in outputs(folder / "out").items() if not TEMPORARY.search(path)}
        assert {path: text for path, text in left.items() if expected[path] != text} == {}
        assert state(folder / "in") == state(bench.inputs)
    assert finish(start(folder, COMMANDS[name])) == (0, [])
    assert outputs(folder / "out") == expected


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", list(COMMANDS))
def test_a_command_that_is_interrupted(bench: Bench, name: str, number: int, status: int) -> None:
    """It ends soon, says so, leaves nothing, and the next run gives the same bytes."""
    expected, seconds = undisturbed(bench, COMMANDS[name])
    moments = random.Random(name)  # noqa: S311
    folder = bench.folder({})
    for _ in range(max(3, KILLS // 5)):
        process = start(folder, COMMANDS[name])
        wait_until_it_works(folder, process)
        time.sleep(moments.uniform(0.1, seconds * 0.9))
        asked = time.monotonic()
        process.send_signal(number)
        ended, lines = finish(process)
        assert time.monotonic() - asked < GRACE_SECONDS + seconds, "it takes as long as it ever does"
        if ended == 0:  # it was about to end anyway
            assert outputs(folder / "out") == expected
            folder = bench.folder({})
            continue
        assert ended in (status, -number)
        assert len(lines) <= 1
        assert outputs(folder / "out") == {}
        assert list(folder.with_name(f"{folder.name}.tmp").iterdir()) == []
    assert finish(start(folder, COMMANDS[name])) == (0, [])
    assert outputs(folder / "out") == expected


@pytest.mark.parametrize("name", ["prune", "external", "quantize"])
def test_several_runs_with_one_output(bench: Bench, name: str) -> None:
    expected, _ = undisturbed(bench, COMMANDS[name])
    folder = bench.folder({})
    ends = [finish(process) for process in [start(folder, COMMANDS[name]) for _ in range(3)]]
    assert ends == [(0, [])] * 3
    assert outputs(folder / "out") == expected


def test_several_runs_in_one_run_folder(bench: Bench) -> None:
    expected, _ = undisturbed(bench, COMPRESS)
    folder = bench.folder({})
    ends = [finish(process) for process in [start(folder, COMPRESS) for _ in range(3)]]
    assert sum(status == 0 for status, _ in ends) >= 1
    for status, lines in ends:
        assert status == 0 or (status == 1 and len(lines) == 1 and "another run uses it" in lines[0])
    assert outputs(folder / "out") == expected


#: Surroundings that must not matter.
SURROUNDINGS: Mapping[str, dict[str, str]] = {
    "hash seed": {"PYTHONHASHSEED": "7"},
    "locale": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
    "time zone": {"TZ": "Asia/Kathmandu"},
    "threads": {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
    "no home": {"HOME": "/nonexistent"},
}

ON_DATA = ("--data", "random:64", "--seed", "3", "-q")
SEARCHES = {
    **COMMANDS,
    "obs": ("prune", "in/model.onnx", "-o", "out/model.onnx", "--score", "obs", "--amount", "0.4", *ON_DATA),
    "sensitivity": (
        "prune", "in/model.onnx", "-o", "out/model.onnx", "--scope", "sensitivity", "--amount", "0.4",
        *ON_DATA,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(SEARCHES))
def test_surroundings_do_not_matter(bench: Bench, name: str) -> None:
    expected, _ = undisturbed(bench, SEARCHES[name])
    for what, environment in SURROUNDINGS.items():
        folder = bench.folder({})
        assert finish(start(folder, SEARCHES[name], **environment)) == (0, [])
        assert outputs(folder / "out") == expected, what


def test_the_number_of_processes_does_not_matter(bench: Bench) -> None:
    expected, _ = undisturbed(bench, SEARCHES["sensitivity"])
    folder = bench.folder({})
    assert finish(start(folder, (*SEARCHES["sensitivity"], "--jobs", "2"))) == (0, [])
    assert outputs(folder / "out") == expected


def test_a_search_goes_on_from_its_cache(bench: Bench) -> None:
    """Killed and taken up again, with entries that were damaged meanwhile, it comes to the same."""
    command = (*SEARCHES["sensitivity"], "--cache", "cache")
    expected, seconds = undisturbed(bench, command)
    folder = bench.folder({})
    for share in (0.5, 0.8):
        process = start(folder, command)
        time.sleep(seconds * share)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        for number, entry in enumerate(sorted((folder / "cache").glob("*.json"))):
            if number % 3 == 0:
                entry.write_bytes(entry.read_bytes()[: number % 50])
    status, _ = finish(start(folder, command))
    assert status == 0
    assert outputs(folder / "out") == expected
