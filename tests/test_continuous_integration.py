"""Workflows, templates and hooks: what docs/ci.md shows is well formed and fits what is in the repository."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_models

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
OURS = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
SHOWN = {
    block.splitlines()[0].removeprefix("# "): yaml.safe_load(block)
    for block in re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
}
VERSION = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


WORKFLOWS = {name: found for name, found in SHOWN.items() if "jobs" in found} | {"ci.yml": OURS}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_give_the_action_what_it_takes(name: str) -> None:
    used = [
        step for step in steps(WORKFLOWS[name]) if re.match(r"(\./|OWNER/onnxprune@)", step.get("uses", ""))
    ]
    assert used
    for step in used:
        assert set(step["with"]) <= set(ACTION["inputs"])
        assert step["uses"] in ("./", f"OWNER/onnxprune@v{VERSION}")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_have_no_more_rights_than_they_need(name: str) -> None:
    workflow = WORKFLOWS[name]
    assert workflow["permissions"] in ({}, {"contents": "read"})
    assert "pull_request_target" not in workflow[True]  # YAML reads the key "on" as a truth value
    for job in workflow["jobs"].values():
        assert "timeout-minutes" in job
        writes = {right for right, level in job.get("permissions", {}).items() if level == "write"}
        comments = any(
            "onnxprune" in step.get("uses", "") or step.get("uses") == "./" for step in job["steps"]
        )
        assert writes <= ({"pull-requests"} if comments else set())
    for step in steps(workflow):
        assert "${{" not in step.get("run", "")
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_one_version_of_each_action_is_used_everywhere() -> None:
    every = [*ACTION["runs"]["steps"], *(step for workflow in WORKFLOWS.values() for step in steps(workflow))]
    used = [step["uses"] for step in every if step.get("uses", "").startswith("actions/")]
    owners = {name.partition("@")[0].split("/")[1]: name.partition("@")[2] for name in used}
    assert len(used) > 5
    for name in used:
        path, _, version = name.partition("@")
        assert owners[path.split("/")[1]] == version, name


def test_all_inputs_and_outputs_are_in_the_document() -> None:
    for name, entry in ACTION["inputs"].items():
        default = f"`{entry['default']}`" if entry["default"] else ""
        assert re.search(rf"^\| `{name}` \| {re.escape(default)} ?\|", DOCUMENT, re.MULTILINE), name
    for name in ACTION["outputs"]:
        assert f"\n| `{name}` |" in DOCUMENT, name


def test_this_repository_is_tested_on_the_oldest_python() -> None:
    oldest = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text())
    assert oldest is not None
    assert oldest[1] in OURS["jobs"]["test"]["strategy"]["matrix"]["python"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {step["run"].split()[1] for step in steps(OURS) if step.get("run", "").startswith("make ")}
    assert made <= targets
    assert {"test", "lint"} <= made


def test_the_image_holds_all_that_is_installed() -> None:
    text = (ROOT / "Dockerfile").read_text()
    copied = {
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE) for word in line.split()
    }
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    settings = (ROOT / "pyproject.toml").read_text()
    assert copied == allowed
    assert copied >= {"pyproject.toml", "LICENSE", "onnxprune", "cli"}
    assert re.search(r'^readme = "(.*)"', settings, re.MULTILINE)[1] in copied  # type: ignore[index]
    assert re.search(r"^USER (?!0|root)", text, re.MULTILINE)


@pytest.fixture
def commands(tmp_path: Path) -> str:
    """A folder with the ``onnxprune`` that is tested here."""
    command = tmp_path / "commands" / "onnxprune"
    command.parent.mkdir()
    command.write_text(f"#!{sys.executable}\nfrom onnxprune_cli.main import run\nrun()\n")
    command.chmod(0o755)
    return str(command.parent)


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_the_hook_checks_every_file(tmp_path: Path, commands: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (hook,) = HOOKS
    assert re.search(hook["files"], "a/model.onnx")
    assert not re.search(hook["files"], "a/model.onnx.data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    good, bad, last = Path("two words.onnx"), Path("bad.onnx"), Path("last.onnx")
    small_models.save_model(small_models.residual_net(), good)
    shutil.copyfile(good, last)
    bad.write_bytes(good.read_bytes()[:300])

    def ends(*files: Path) -> subprocess.CompletedProcess[str]:
        command = [*shlex.split(hook["entry"]), *map(str, files)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert ends(good, last).returncode == 0
    done = ends(bad, good)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: bad.onnx: ")


def test_the_hook_that_is_shown_is_there() -> None:
    (repository,) = SHOWN[".pre-commit-config.yaml"]["repos"]
    assert repository["rev"] == f"v{VERSION}"
    assert [hook["id"] for hook in repository["hooks"]] == [hook["id"] for hook in HOOKS]


class Notes:
    """Stands in for python-gitlab's notes of a merge request."""

    def __init__(self, found: list[Any]) -> None:
        self.found = found
        self.created: list[str] = []

    def list(self, *, iterator: bool) -> list[Any]:
        assert iterator
        return self.found

    def create(self, values: dict[str, str]) -> None:
        self.created.append(values["body"])


class Note:
    def __init__(self, body: str, author: int) -> None:
        self.body, self.author, self.saved = body, {"id": author}, False

    def save(self) -> None:
        self.saved = True


@pytest.mark.parametrize("ours", [False, True])
def test_the_note_on_gitlab(ours: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = SHOWN[".gitlab-ci.yml"]["compress"]
    (script,) = job["after_script"]
    code = re.search(r"<<'END'\n(.*)\nEND\n", script, re.DOTALL)
    assert code is not None
    marker = "<!-- onnxprune recipe.toml -->"
    theirs, own = Note(f"{marker}\nsomebody else's", 1), Note(f"{marker}\nold", 2)
    notes = Notes([Note("hello", 2), theirs, *([own] if ours else [])])

    class Gitlab:
        def __init__(self, address: str, private_token: str) -> None:
            assert (address, private_token) == ("https://gitlab.example.com", "secret")
            self.user = type("User", (), {"id": 2})

        def auth(self) -> None:
            pass

        projects = type("Projects", (), {"get": staticmethod(lambda *_, **__: Project)})

    class Project:
        mergerequests = type(
            "Requests", (), {"get": staticmethod(lambda *_, **__: type("Request", (), {"notes": notes}))}
        )

    module = type(sys)("gitlab")
    module.Gitlab = Gitlab  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gitlab", module)
    for name, value in {
        "CI_SERVER_URL": "https://gitlab.example.com", "GITLAB_TOKEN": "secret",
        "CI_PROJECT_ID": "5", "CI_MERGE_REQUEST_IID": "7",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    Path("report.md").write_text("✅ passed", encoding="utf-8")
    exec(compile(code[1], "gitlab", "exec"), {})  # noqa: S102 # our own text

    assert not theirs.saved
    assert own.saved == ours
    assert ([own.body] if ours else notes.created) == [f"{marker}\n✅ passed"]


def test_what_gitlab_keeps_is_what_the_samples_recipe_writes() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    recipe = tomllib.loads((ROOT / "samples" / "ci" / "recipe.toml").read_text(encoding="utf-8"))
    job = SHOWN[".gitlab-ci.yml"]["compress"]
    written = recipe["output"]
    assert job["artifacts"]["reports"]["junit"] == written["junit"]
    assert set(job["artifacts"]["paths"]) <= set(written.values())
    assert job["cache"][0]["paths"] == [f"{recipe['run']['folder']}/"]
    assert job["variables"]["ONNXPRUNE"] == f"onnxprune=={VERSION}"
