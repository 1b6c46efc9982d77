"""The composite action, step by step; the command, pip and gh are programs that note how they are called."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from running_actions import Runner

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).resolve().parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the action runs on Linux and macOS")

#: Stands in for the Python that was set up: makes an environment without installing anything.
SETUP_PYTHON = """
import os, pathlib, sys
assert sys.argv[1:3] == ["-m", "venv"], sys.argv
bin = pathlib.Path(sys.argv[3]) / "bin"
bin.mkdir(parents=True, exist_ok=True)
for name in ("python", "onnxprune"):
    (bin / name).unlink(missing_ok=True)
    (bin / name).symlink_to(pathlib.Path(os.environ["PROGRAMS"]) / f"installed-{name}")
"""

INSTALLED_PYTHON = """
import json, os, pathlib, sys
if sys.argv[1:3] == ["-m", "pip"]:
    pathlib.Path(os.environ["NOTES"], "pip.json").write_text(json.dumps(sys.argv[3:]))
else:
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

#: Stands in for the command: writes the reports that it is told to write, and ends as it is told to end.
ONNXPRUNE = """
import json, os, pathlib, sys
notes, status = pathlib.Path(os.environ["NOTES"]), int(os.environ.get("STATUS", "0"))
(notes / "onnxprune.json").write_text(json.dumps(sys.argv[1:]))
print("::error::a name from the model", flush=True)
print("::error::another one", file=sys.stderr)
given = dict(entry.split("=", 1) for entry in sys.argv if "=" in entry)
if status in (0, 3):
    reused = os.environ.get("REUSED") == "yes"
    record = {"verdict": "fail" if status else "pass", "stages": [{"reused": True}, {"reused": reused}]}
    pathlib.Path(given["output.json"]).write_text(json.dumps(record))
    pathlib.Path(given["output.markdown"]).write_text("### \\u2705 the summary, `$(touch harm)`\\n", "utf-8")
if status < 0:  # the runner ends the shell, and all that it started
    os.kill(os.getppid(), -status)
sys.exit(status)
"""

GH = """
import json, os, pathlib, sys
notes = pathlib.Path(os.environ["NOTES"])
if os.environ.get("FORBIDDEN") and "--method" in sys.argv:
    sys.exit("gh: Resource not accessible by integration (HTTP 403)")
entry = {"arguments": sys.argv[1:], "marker": os.environ["MARKER"]}
for argument in sys.argv:
    if argument.startswith("body=@"):
        entry["body"] = pathlib.Path(argument[6:]).read_text("utf-8")
with (notes / "gh.jsonl").open("a") as stream:
    print(json.dumps(entry), file=stream)
if "--jq" in sys.argv:
    print(os.environ.get("OURS", ""), end="")
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    programs, notes = tmp_path / "programs", tmp_path / "notes"
    programs.mkdir()
    notes.mkdir()
    for name, text in {
        "setup-python": SETUP_PYTHON, "installed-python": INSTALLED_PYTHON,
        "installed-onnxprune": ONNXPRUNE, "gh": GH,
    }.items():  # fmt: skip
        file = programs / name
        file.write_text(f"#!{sys.executable}\n{text.lstrip()}")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PROGRAMS", str(programs))
    monkeypatch.setenv("NOTES", str(notes))
    inputs = {f"inputs.{name}": entry["default"] for name, entry in ACTION["inputs"].items()}
    context = {
        **inputs,
        "steps.python.outputs.python-path": str(programs / "setup-python"),
        "runner.os": "Linux",
        "runner.arch": "X64",
        "github.action_path": "/actions/onnxprune",
        "github.event.pull_request.head.repo.full_name": "team/models",
        "github.event.pull_request.number": "7",
        "github.repository": "team/models",
        "github.run_attempt": "1",
        "github.run_id": "123",
        "github.server_url": "https://github.com",
        "github.token": "token",
    }
    return Runner(tmp_path, context, f"{programs}{os.pathsep}{os.environ['PATH']}")


def noted(job: Runner, name: str) -> Any:
    return json.loads((job.folder / "notes" / name).read_text())


def comments(job: Runner) -> list[dict[str, Any]]:
    notes = job.folder / "notes" / "gh.jsonl"
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def outputs(job: Runner) -> dict[str, str]:
    return {name: job.expand(entry["value"]) for name, entry in ACTION["outputs"].items()}


def test_a_recipe_that_passes(job: Runner) -> None:
    job.run(ACTION)

    assert job.failed == 0, job.printed
    assert (outputs(job)["status"], outputs(job)["verdict"]) == ("0", "pass")
    assert Path(outputs(job)["report"], "report.json").is_file()
    assert noted(job, "pip.json")[-1] == "/actions/onnxprune"
    command = noted(job, "onnxprune.json")
    assert command[0] == "compress"
    assert command[-2:] == ["--", "recipe.toml"]
    assert [name for name, _ in job.used] == [
        "actions/setup-python@v6", "actions/cache/restore@v5", "actions/cache/save@v5",
        "actions/upload-artifact@v6",
    ]  # fmt: skip
    assert "the summary" in (job.folder / "github_step_summary").read_text(encoding="utf-8")


def test_what_is_restored_and_kept_is_the_folder_that_the_run_uses(job: Runner) -> None:
    job.run(ACTION)

    (folder,) = (
        entry.partition("=")[2] for entry in noted(job, "onnxprune.json") if entry.startswith("run.folder=")
    )
    restored, kept = (given for name, given in job.used if name.startswith("actions/cache/"))
    assert restored["path"] == kept["path"] == folder
    assert restored["key"] == kept["key"]
    assert kept["key"].startswith(restored["restore-keys"])
    assert "123" not in restored["restore-keys"]


def test_a_gate_that_is_not_passed_ends_the_action_with_its_status_after_all_else(job: Runner) -> None:
    job.run(ACTION, STATUS="3")

    assert job.failed == 3
    assert (outputs(job)["status"], outputs(job)["verdict"]) == ("3", "fail")
    assert [name for name, _ in job.used][-2:] == ["actions/cache/save@v5", "actions/upload-artifact@v6"]
    assert comments(job)[-1]["body"].count("the summary") == 1


def test_a_run_without_a_result_says_so_and_does_not_leave_an_old_comment(job: Runner) -> None:
    job.run(ACTION, STATUS="1", OURS="11\n")

    assert job.failed == 1
    assert outputs(job)["verdict"] == ""
    assert "actions/cache/save@v5" in [name for name, _ in job.used]  # what it had done is kept
    assert "ended with status 1" in comments(job)[-1]["body"]
    assert "PATCH" in comments(job)[-1]["arguments"]


def test_the_report_of_an_earlier_run_is_not_taken_for_this_one(job: Runner) -> None:
    job.run(ACTION)
    job.run(ACTION, STATUS="1")

    assert (outputs(job)["status"], outputs(job)["verdict"]) == ("1", "")


def test_where_nothing_ran_anew_nothing_is_kept_anew(job: Runner) -> None:
    job.run(ACTION, REUSED="yes")

    assert "actions/cache/save@v5" not in [name for name, _ in job.used]


def test_a_run_whose_time_was_up_goes_on_next_time(job: Runner) -> None:
    job.run(ACTION, STATUS="-15")

    assert job.failed
    assert [name for name, _ in job.used][-1] == "actions/cache/save@v5"  # no reports: there are none
    assert "--resume" in noted(job, "onnxprune.json")


def test_nothing_is_kept_of_a_run_that_never_began(job: Runner) -> None:
    job.context["steps.python.outputs.python-path"] = "false"
    job.run(ACTION)

    assert job.failed
    assert [name for name, _ in job.used] == ["actions/setup-python@v6"]


def test_the_first_comment_is_posted_and_later_ones_replace_it(job: Runner) -> None:
    job.run(ACTION)
    job.run(ACTION, OURS="11\n12\n")

    asked, posted, _, replaced = comments(job)
    assert "repos/team/models/issues/7/comments?per_page=100" in asked["arguments"]
    assert posted["arguments"][2:5] == ["--method", "POST", "repos/team/models/issues/7/comments"]
    assert replaced["arguments"][2:5] == ["--method", "PATCH", "repos/team/models/issues/comments/11"]
    first, *_, last = posted["body"].splitlines()
    assert first == posted["marker"] == replaced["marker"]
    assert re.fullmatch(r"<!-- onnxprune [0-9a-f]{12} -->", first)
    assert last == "[The run and all its reports](https://github.com/team/models/actions/runs/123)"
    assert "✅ the summary, `$(touch harm)`" in posted["body"]


def test_each_recipe_has_a_comment_and_a_run_folder_of_its_own(job: Runner) -> None:
    job.run(ACTION)
    job.context["inputs.recipe"] = "other.toml"
    job.run(ACTION)

    assert len({entry["marker"] for entry in comments(job)}) == 2
    assert len({given["path"] for name, given in job.used if name == "actions/cache/save@v5"}) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("inputs.comment", "false"),
        ("github.event.pull_request.head.repo.full_name", "somebody/models"),
        ("github.event.pull_request.head.repo.full_name", ""),  # no pull request at all
    ],
)
def test_no_comment_where_none_is_wanted_or_allowed(job: Runner, name: str, value: str) -> None:
    job.context[name] = value
    job.run(ACTION)

    assert job.failed == 0
    assert comments(job) == []
    assert "the summary" in (job.folder / "github_step_summary").read_text(encoding="utf-8")


@pytest.mark.parametrize("status", ["0", "3"])
def test_a_comment_that_is_refused_is_a_warning_and_not_the_verdict(job: Runner, status: str) -> None:
    job.run(ACTION, FORBIDDEN="yes", STATUS=status)

    assert str(job.failed) == status
    assert "::warning" in job.printed["Comment on the pull request"]
    assert "403" in job.printed["Comment on the pull request"]


def test_arguments_are_read_as_a_shell_would_but_run_nothing(job: Runner) -> None:
    job.context["inputs.args"] = "--set 'title=a \"b\" c' --set\n title=$(touch harm)`touch harm`;*"
    job.context["inputs.recipe"] = "$(touch harm) a.toml"
    job.context["inputs.extras"] = "torch,report"
    job.run(ACTION)

    assert job.failed == 0, job.printed
    given = noted(job, "onnxprune.json")
    assert given[2:6] == ["--set", 'title=a "b" c', "--set", "title=$(touch"]
    assert noted(job, "onnxprune.json")[-1] == "$(touch harm) a.toml"
    assert noted(job, "pip.json")[-1] == "/actions/onnxprune[torch,report]"
    assert not list(job.folder.rglob("harm"))


def test_arguments_that_make_no_sense_end_the_step(job: Runner) -> None:
    job.context["inputs.args"] = "--set 'title=a"
    job.run(ACTION)

    assert job.failed == 1
    assert "No closing quotation" in job.printed["Compress"]
    assert not (job.folder / "notes" / "onnxprune.json").exists()


def test_what_the_command_prints_is_no_command_to_the_runner(job: Runner) -> None:
    job.run(ACTION)

    printed = job.printed["Compress"]
    assert printed.count("::error::") == 2
    (token,) = re.findall(r"^::stop-commands::([0-9a-f]{32})$", printed, re.MULTILINE)
    assert printed.index("::stop-commands::") < printed.index("::error::")
    assert printed.rindex("::error::") < printed.index(f"\n::{token}::")


def test_no_script_holds_an_expression() -> None:
    # an expression becomes text of the script before bash reads it: whoever names a branch would write code
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", ""), step["name"]
