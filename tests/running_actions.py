"""Runs a composite action of GitHub as its runner would: step by step, in bash, in a prepared environment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_EXPRESSION = re.compile(r"\$\{\{\s*(.*?)\s*\}\}", re.DOTALL)


@dataclass
class Runner:
    """One job that uses an action.

    Attributes:
        folder: of the job.
        context: what expressions refer to: "inputs.recipe", "github.run_id" and so on, each with its text.
        path: folders with programs that stand in for real ones.
        used: the actions that were used and what they were given, in their order.
        printed: what each step printed, by its name.
        failed: the exit status of the first step that failed; 0 if none did.
        cancelled: the job was broken off in the step that failed.
    """

    folder: Path
    context: dict[str, str]
    path: str
    used: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    printed: dict[str, str] = field(default_factory=dict)
    failed: int = 0
    cancelled: bool = False

    def run(self, action: Mapping[str, Any], **environment: str) -> None:
        """Run all steps whose conditions hold."""
        for name in ("temp", "workspace"):
            (self.folder / name).mkdir(exist_ok=True)
        for step in action["runs"]["steps"]:
            if not self.holds(step.get("if", "success()")):
                continue
            if "uses" in step:
                given = {key: self.expand(value) for key, value in step.get("with", {}).items()}
                self.used.append((step["uses"], given))
            else:
                self.run_script(step, environment)

    def run_script(self, step: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Run one script, and read the outputs that it set."""
        files = {name: self.folder / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        files["GITHUB_OUTPUT"].write_text("")
        script = self.folder / "script.sh"
        script.write_text(step["run"])
        bash = shutil.which("bash")
        assert bash is not None
        done = subprocess.run(
            [bash, "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=self.folder / "workspace",
            env={
                **os.environ,
                "PATH": self.path,
                "RUNNER_TEMP": str(self.folder / "temp"),
                **{name: str(file) for name, file in files.items()},
                **{name: self.expand(value) for name, value in step.get("env", {}).items()},
                **environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        self.printed[step["name"]] = done.stdout + done.stderr
        for line in files["GITHUB_OUTPUT"].read_text().splitlines():
            key, equals, value = line.partition("=")
            assert equals, line
            self.context[f"steps.{step['id']}.outputs.{key}"] = value
        if "id" in step:
            self.context[f"steps.{step['id']}.outcome"] = "failure" if done.returncode else "success"
        self.failed = self.failed or done.returncode
        self.cancelled = self.cancelled or done.returncode == -signal.SIGTERM

    def expand(self, text: str) -> str:
        """Put values in the place of expressions."""
        return _EXPRESSION.sub(lambda match: self.value(match[1]), str(text))

    def value(self, expression: str) -> str:
        """Return what a name or a quoted text stands for; of steps that did not run too."""
        if expression.startswith("'"):
            return expression.strip("'")
        if expression.startswith("steps."):
            return self.context.get(expression, "skipped" if expression.endswith(".outcome") else "")
        return self.context[expression]

    def holds(self, condition: str) -> bool:
        """Say whether a condition holds: comparisons joined by ``&&``."""
        condition = _EXPRESSION.sub(lambda match: match[1], condition)
        return all(self._term(term.strip()) for term in condition.split("&&"))

    def _term(self, term: str) -> bool:
        if term == "success()":
            return not self.failed
        if term in ("!cancelled()", "always()"):
            return term == "always()" or not self.cancelled
        left, operator, right = term.split()
        return (self.value(left) == self.value(right)) == {"==": True, "!=": False}[operator]
