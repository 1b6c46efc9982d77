"""The page docs/accuracy.md: what was done, on which machine, and a table for each model."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accuracy.grid import MODELS, Model, Run
from accuracy.table import Row, lines, table

INTRODUCTION = """\
# Accuracy

What `onnxprune prune` leaves of the accuracy of five models, by pattern, score and repair. Nothing is trained
after the cut: scores and repairs see 512 samples of the training data, without labels. Regenerate this page
with

    python benchmarks/accuracy/run.py --models FOLDER --out docs

which first trains the models that are not in FOLDER, and takes hours for the whole grid; what has been
measured is not measured again. The single runs are in [accuracy.json](accuracy.json).

- *pattern*: *unstructured* and *2:4* put zeros into the weights; the shapes stay. *channels* and *heads*
  shrink shapes: for a share of the multiply-accumulates, or by half. Every layer gives the same share, but
  for unstructured zeros by `wanda` and `obs`, which compare all layers: these are the defaults.
- *score*: what decides which weights or channels go. `random` is the control, `l2` the magnitude (of single
  weights: the absolute value); `wanda` and `obs` look at data; `(default)` is none named, which
  with a repair is `obs` under scope `global`.
- *repair*: the value of `--recover`; empty is none. `bias` and `statistics` are shown for one score, several
  rounds for another.
- *top-1*: share of the held-out samples that are named correctly; *of dense*: divided by that of the
  original; *agreement*: share of the samples that get the same class as from the original.
- *±*: standard deviation between three seeds. A seed draws the calibration samples and, for `random`, what
  goes. Where nothing depends on it there is one run.
- *seconds*: of `prune` in one thread: analysis, scores, cut, repair, proof; not for writing and verifying the
  file. *MiB*: peak resident memory of a process that does this alone, the interpreter and all data included
  (the largest of the seeds).
- *parameters kept*: zeros are not kept. *MACs kept*: a zero is still multiplied.

The accuracy is that of the file that was written and verified. The models are ordinary ones, from ordinary
recipes; on larger models, and on harder data, figures differ.
"""


def about(version: Callable[[str], str], system: str, source: str) -> dict[str, Any]:
    """Return on what machine and with which packages the rows were made.

    Args:
        version: of a package, by its name.
        system: the operating system.
        source: digest of this package.
    """
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": system,
        "python": sys.version.split()[0],
        "versions": {name: version(name) for name in ("onnx", "onnx-ir", "onnxruntime", "numpy", "scipy")},
        "source": source,
    }


def _processor() -> str:
    described = Path("/proc/cpuinfo")
    for line in described.read_text().splitlines() if described.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def page(
    found: Sequence[tuple[Model, Sequence[tuple[Run, Row | None]]]],
    records: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Any],
) -> str:
    """Return the whole page.

    Args:
        found: every model that is there, all of its runs, and their rows (None: not measured).
        records: how each model was made, as train.py wrote it.
        facts: from `about`.
    """
    sections = [INTRODUCTION, _made(found, facts)]
    for model, pairs in found:
        measured = lines(pairs)
        if measured:
            sections.append(
                f"## {model.name}\n\n{_described(records[model.name], pairs)}\n\n{table(measured)}"
            )
    return "\n".join(sections)


def _made(found: Sequence[tuple[Model, Sequence[tuple[Run, Row | None]]]], facts: Mapping[str, Any]) -> str:
    rows = [row for _, pairs in found for _, row in pairs]
    done = [row for row in rows if row is not None]
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    text = (
        f"Made on {facts['processor']} ({facts['cores']} cores, of which a run uses one), {facts['system']}, "
        f"Python {facts['python']}, {versions}."
    )
    if len(done) < len(rows):
        text += f" {len(done)} of {len(rows)} runs have been done."
    earlier = sum(row["source"] != facts["source"] for row in done)
    if earlier:
        text += f" {earlier} of them were done with earlier states of the package."
    missing = [model.name for model in MODELS if model.name not in {there.name for there, _ in found}]
    if missing:
        text += f" Not here, for want of model or data: {', '.join(missing)}."
    return text + "\n"


def _described(record: Mapping[str, Any], pairs: Sequence[tuple[Run, Row | None]]) -> str:
    samples = next((row["samples"] for _, row in pairs if row is not None and "samples" in row), None)
    judged = "" if samples is None else f" Judged on {samples:,} samples."
    seconds = record.get("training_seconds")
    took = "" if seconds is None else f", {seconds / 60:.0f} minutes"
    return f"Data: {record['data']}. Training: {record['training']}{took}.{judged}"
