"""The CI step from end to end: compress, tighten a gate, train again, compress again by the same plan.

python run.py [--out FOLDER]

Every step is a command line as a pipeline would run it. Ends with status 1 if one of them does not do what it
should.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
RECIPES = ("recipe.toml", "recipe-retrained.toml")
REPORTS = ("report.json", "report.html", "report.md", "report.xml")
ACCEPTED = ("small.onnx", "small.plan/plan.json", "accepted.json")
GATE_MISSED = 3

#: ``onnxprune`` of this interpreter, whatever the path says.
ONNXPRUNE = (sys.executable, "-c", "from onnxprune_cli.main import run; run()")


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        step: what it is about.
        status: exit status of ``onnxprune compress``.
        verdict: of its report.
        reused: stages whose earlier result was taken, of all.
        accuracy, original_accuracy: shares of the held-out digits that are right.
        size_ratio: size of the file / that of the original.
        latency_ratio: time of one run / that of the original.
        seconds: wall time.
    """

    step: str
    status: int
    verdict: str
    reused: str
    original_accuracy: float
    accuracy: float
    size_ratio: float
    latency_ratio: float
    seconds: float


class Wrong(Exception):
    """A step did not do what it should."""


def compress(folder: Path, step: str, *arguments: str, expected: int) -> tuple[Row, str]:
    """Run ``onnxprune compress`` in a folder, check status and reports; return a row, and all it printed."""
    for name in REPORTS:
        (folder / name).unlink(missing_ok=True)
    print(f"$ onnxprune compress {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    command = [*ONNXPRUNE, "compress", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    print(done.stdout, done.stderr, sep="\n", flush=True)
    if done.returncode != expected:
        raise Wrong(f"{step}: ended with status {done.returncode}, {expected} was expected")
    return _row(step, done.returncode, read_reports(folder, done.stdout), seconds), done.stderr


def read_reports(folder: Path, table: str) -> dict[str, Any]:
    """Return the JSON report, once all five forms are there and agree on the verdict."""
    record: dict[str, Any] = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    gates = {gate["name"]: gate["verdict"] for gate in record["gates"]}
    page = (folder / "report.html").read_text(encoding="utf-8")
    summary = (folder / "report.md").read_text(encoding="utf-8")
    cases = ElementTree.parse(folder / "report.xml").getroot()
    failures = [case for case in cases.iter("testcase") if case.find("failure") is not None]
    for form, text in {"table": table, "html": page, "markdown": summary}.items():
        missing = [name for name in gates if name not in text]
        if missing or record["verdict"] not in text.lower():
            raise Wrong(f"the {form} report lacks the verdict, or gates: {', '.join(missing)}")
    if bool(failures) != (record["verdict"] == "fail"):
        raise Wrong(f"the JUnit report has {len(failures)} failures, the verdict is {record['verdict']}")
    return record


def _row(step: str, status: int, record: dict[str, Any], seconds: float) -> Row:
    original, final = record["models"][0], record["models"][-1]
    return Row(
        step=step,
        status=status,
        verdict=record["verdict"],
        reused=f"{sum(stage['reused'] for stage in record['stages'])} of {len(record['stages'])}",
        original_accuracy=original["accuracy"]["value"],
        accuracy=final["accuracy"]["value"],
        size_ratio=final["size_bytes"] / original["size_bytes"],
        latency_ratio=final["latency_ratio"]["value"],
        seconds=seconds,
    )


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of everything that an accepted run left."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ACCEPTED}


def train(folder: Path, *arguments: str) -> None:
    """Train a network in a process of its own."""
    print(f"$ python train.py {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, str(HERE / "train.py"), "--out", str(folder), *arguments], check=True)


def run(folder: Path, *training: str) -> list[Row]:
    """Do every step in a folder; return a row for each.

    Raises:
        Wrong: naming the step that did not do what it should.
    """
    if not (folder / "model.onnx").exists():
        train(folder, *training)
    for name in RECIPES:
        shutil.copyfile(HERE / name, folder / name)

    first, _ = compress(folder, "the recipe", "recipe.toml", expected=0)
    again, _ = compress(folder, "once more", "recipe.toml", expected=0)
    accepted = digests(folder)
    if again.reused != "2 of 2":
        raise Wrong(f"once more: {again.reused} stages were reused, though nothing had changed")

    tight, said = compress(
        folder, "tightened", "recipe.toml", "--set", "gates.size_ratio=0.01", expected=GATE_MISSED
    )
    if "size_ratio" not in said.splitlines()[-1]:
        raise Wrong(f"tightened: the gate is not named in {said.splitlines()[-1]!r}")
    if not (folder / "small.rejected.onnx").exists():
        raise Wrong("tightened: the model was not kept aside")
    now = digests(folder)
    changed = [name for name in ACCEPTED if now[name] != accepted[name]]
    if changed:
        raise Wrong(f"tightened: what had been accepted has changed: {', '.join(changed)}")

    if not (folder / "retrained.onnx").exists():
        train(folder, "--name", "retrained.onnx", "--seed", "1", *training)
    retrained, _ = compress(folder, "re-trained", "recipe-retrained.toml", expected=0)
    return [first, again, tight, retrained]


def show(rows: list[Row]) -> None:
    """Print one table."""
    table = Table(
        title="The CI step on handwritten digits: how many are right before and after;\n"
        "size and time as shares of the original's",
        box=box.SIMPLE_HEAD,
        title_justify="left",
    )
    table.add_column("step")
    for name in ("status", "verdict", "reused", "before", "after", "size", "time", "s"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for row in rows:
        table.add_row(
            row.step, str(row.status), row.verdict, row.reused,
            f"{row.original_accuracy:.1%}", f"{row.accuracy:.1%}",
            f"{row.size_ratio:.2f}", f"{row.latency_ratio:.2f}", f"{row.seconds:.0f}",
        )  # fmt: skip
    Console().print(table)


def main() -> None:
    """Run all steps and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("ci-output"), help="folder to work in")
    parser.add_argument("--epochs", type=int, help="of training, instead of the usual number")
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()

    options.out.mkdir(parents=True, exist_ok=True)
    training = [] if options.epochs is None else ["--epochs", str(options.epochs)]
    try:
        rows = run(options.out, *training)
    except Wrong as wrong:
        sys.exit(f"error: {wrong}")
    show(rows)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
