"""Runs that are killed at any point: nothing half-written, and the same bytes once they are resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_projects import RECIPE, Project, make_project

TUNED = RECIPE.replace(
    "[gates]",
    """
[[stages]]
kind = "finetune"
steps = 12
checkpoint_every = 2
evaluate_every = 2

[gates]
""",
)

pytestmark = pytest.mark.long

#: Runs a recipe, and kills the process at the n-th rename: before it takes place, or right after.
SCRIPT = """
import os, signal, sys
import onnxprune

recipe, number, after = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after"
count = 0
for name in ("replace", "rename"):
    def rename(*arguments, _real=getattr(os, name), **options):
        global count
        count += 1
        if count == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = _real(*arguments, **options)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(os, name, rename)
onnxprune.compress(recipe, resume=True)
print("renames:", count)
"""


def run(project: Project, number: int = 0, when: str = "before") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, project.recipe.name, str(number), when],
        capture_output=True, text=True, timeout=300, check=False, cwd=project.folder,
    )  # fmt: skip


def results(project: Project) -> dict[str, str]:
    """Everything that must be the same, however often a run was broken off."""
    found = project.digests()
    return {name: found[name] for name in found if name == "small.onnx" or ".plan/" in name}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, int]:
    """A project whose run nobody disturbed, and the number of renames in it."""
    pytest.importorskip("torch")
    project = make_project(tmp_path_factory.mktemp("whole") / "project", TUNED)
    done = run(project)
    assert done.returncode == 0, done.stderr
    return project, int(done.stdout.rpartition("renames: ")[2])


def check(whole: Project, folder: Path, number: int, when: str) -> None:
    project = make_project(folder, TUNED)
    killed = run(project, number, when)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    expected = results(whole)
    left = results(project)
    assert {name: digest for name, digest in left.items() if expected[name] != digest} == {}
    resumed = run(project)
    assert resumed.returncode == 0, resumed.stderr
    assert results(project) == expected
    stray = [path for path in project.folder.rglob("*onnxprune-tmp*") if "results" not in path.parts]
    assert stray == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_killed_run_resumes_to_the_same_bytes(whole, tmp_path, share, when):
    project, renames = whole
    check(project, tmp_path / "project", max(1, round(share * renames)), when)


def test_a_run_that_is_killed_again_and_again_arrives(whole, tmp_path):
    """Each attempt dies a few renames later than where it began; writing the outputs alone takes eight."""
    reference, renames = whole
    project = make_project(tmp_path / "project", TUNED)
    attempts = 0
    while run(project, 12, "before").returncode == -signal.SIGKILL:
        attempts += 1
        assert attempts <= renames, "no attempt gets any further"
    assert attempts >= 2
    assert results(project) == results(reference)


def test_a_stage_that_was_tuned_goes_on_from_its_checkpoint(whole, tmp_path):
    """Killed in the middle of tuning, the resumed run has fewer steps to do, and says so by its renames."""
    reference, renames = whole
    project = make_project(tmp_path / "project", TUNED)
    assert run(project, renames // 2).returncode == -signal.SIGKILL
    work = [path for path in (project.folder / "run" / "work").glob("*/checkpoint/*") if path.is_file()]
    resumed = run(project)
    assert resumed.returncode == 0, resumed.stderr
    assert work, "the middle of this run is in tuning"
    assert int(resumed.stdout.rpartition("renames: ")[2]) < renames
    assert results(project) == results(reference)
