"""What becomes of many architectures at 50 %: a row for each model and exporter, with the reasons.

    python benchmarks/support_matrix.py --write                  # docs/support-matrix.md and .json
    python benchmarks/support_matrix.py --only vision_transformer,unet
    python benchmarks/support_matrix.py --models FOLDER          # every .onnx file of a folder

The architectures are those of ``tests/architectures``, from both of torch's exporters; this needs torch.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import onnxprune
from onnxprune.errors import OnnxPruneError

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))  # where the architectures are


AMOUNT = 0.5
PAGE, FIGURES = ROOT / "docs" / "support-matrix.md", ROOT / "docs" / "support-matrix.json"
EXPORTERS = ("ts", "dynamo")

#: By how much the share of parameters or MACs that is kept may grow before a row counts as worse.
SLACK = 0.005

#: Models differ in which of these apply: heads only where there is attention.
RUNS: Mapping[str, Mapping[str, Any]] = {
    "channels": {"pattern": "channels"},
    "inexact": {"pattern": "channels", "allow_inexact": True},
    "heads": {"pattern": "heads"},
}


@dataclass(frozen=True, slots=True)
class Run:
    """One pattern on one model.

    Attributes:
        exit_status: what the command line would end with: 0, 1 (the proof fails), 4 (nothing can go).
        reason: what was said if it is not 0.
        parameters: share that is kept, in (0, 1]; None if nothing was pruned, as the following.
        macs: share that is kept.
        error: of the proof, relative.
        seconds: for analysis, plan, cut, proof, and the verified file.
        latency: time of the pruned model over that of the original; only where it was asked for.
    """

    exit_status: int
    reason: str | None = None
    parameters: float | None = None
    macs: float | None = None
    error: float | None = None
    seconds: float | None = None
    latency: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One model from one exporter.

    Attributes:
        model: its name.
        exporter: ``ts``, ``dynamo``, or empty where the file's name does not say.
        nodes: of the file's graph.
        groups_open: channel groups that may lose channels exactly.
        groups_total: all channel groups.
        frozen: how many groups stay, by reason.
        runs: by key of `RUNS`; heads only where heads were found.
    """

    model: str
    exporter: str
    nodes: int
    groups_open: int
    groups_total: int
    frozen: Mapping[str, int]
    runs: Mapping[str, Run]


def make_row(name: str, exporter: str, path: Path, *, latency: bool = False) -> Row:
    """Prune the model in a file by every pattern that applies.

    Args:
        name: of the row.
        exporter: of the row.
        path: the model; files are written beside it.
        latency: also time the result of the first pattern against the original.
    """
    groups = onnxprune.find_groups(onnxprune.load(path))
    frozen: dict[str, int] = {}
    for group in groups:
        if group.frozen is not None:
            reason = in_general(group.frozen)
            frozen[reason] = frozen.get(reason, 0) + 1
    heads = any(group.kind == "heads" for group in groups)
    return Row(
        name,
        exporter,
        sum(1 for _ in onnxprune.load(path).graph),
        sum(group.frozen is None for group in groups),
        len(groups),
        dict(sorted(frozen.items(), key=lambda entry: (-entry[1], entry[0]))),
        {
            key: make_run(path, latency=latency and key == "channels", **options)
            for key, options in RUNS.items()
            if key != "heads" or heads
        },
    )


def make_run(path: Path, *, latency: bool, **options: Any) -> Run:
    """Prune the model in a file, and write and verify the result in the same folder."""
    output = path.with_suffix(".pruned.onnx")
    started = time.perf_counter()
    try:
        result = onnxprune.prune(onnxprune.load(path), amount=AMOUNT, **options)
        report = onnxprune.save_pruned(result, output, against=path)
    except OnnxPruneError as error:
        return Run(error.exit_status, str(error).splitlines()[0])
    seconds = time.perf_counter() - started
    kept = {entry["what"]: float(entry["ratio"]) for entry in report.sections["cost"]}
    (proof,) = (check.detail for check in report.checks if "twin" in check.name)
    found = re.search(r"relative error ([\d.e+-]+)", proof)
    if found is None:
        raise RuntimeError(f"the proof names no error: {proof}")
    ratio = onnxprune.benchmark(path, output, pairs=20).ratio if latency else None
    return Run(
        0,
        None,
        round(kept["parameters"], 4),
        round(kept["MACs"], 4),
        float(found.group(1)),
        round(seconds, 2),
        None if ratio is None else round(ratio.value, 2),
    )


#: A word with a digit, or with a slash, dot or underline inside, is the name of something in the model.
_PARTICULAR = re.compile(r"\(\S*[/_]\S*\)|\S*(?:\d|\w[/_]\w|/\w|\w\.\w)\S*")


#: Reasons that end in a name, which may look like any word.
_MEANINGS = {
    "output ": "output of the model",
    "its positions are removed by way of": "by way of another group",
}


def in_general(reason: str) -> str:
    """Return a reason without the names of nodes and values in it, so that equal reasons are counted.

    >>> in_general("/blocks.0/norm takes mean and deviation over these channels: cutting them is not exact")
    'takes mean and deviation over these channels'
    """
    shorter = _PARTICULAR.sub(" ", reason).replace("(", " ").replace(")", " ").split(": cutting")[0]
    for start, meaning in _MEANINGS.items():
        if shorter.startswith(start):
            return meaning
    return re.sub(r"\s+", " ", shorter).strip(" ,:")


def worsened(before: Row, after: Row) -> list[str]:
    """Say in what a row became worse than it was: one line each, none if it did not."""
    found = []
    if after.groups_open < before.groups_open:
        found.append(f"{after.groups_open} groups are open, {before.groups_open} were")
    for key, was in before.runs.items():
        now = after.runs.get(key)
        if now is None:
            found.append(f"{key}: there is nothing of this kind any more")
        elif now.exit_status != was.exit_status:
            found.append(f"{key}: exit {now.exit_status} ({now.reason}), was {was.exit_status}")
        else:
            for what in ("parameters", "macs"):
                kept, kept_before = getattr(now, what), getattr(was, what)
                if kept is not None and kept_before is not None and kept > kept_before + SLACK:
                    found.append(f"{key}: {kept:.3f} of the {what} are kept, {kept_before:.3f} were")
    return found


def as_dict(row: Row) -> dict[str, Any]:
    """Return what a later run is compared with: no times, which differ from machine to machine."""
    plain = asdict(row)
    for run in plain["runs"].values():
        del run["seconds"], run["latency"], run["error"]
    return plain


def from_dict(plain: Mapping[str, Any]) -> Row:
    """Return a row as `as_dict` wrote it."""
    runs = {key: Run(**run) for key, run in plain["runs"].items()}
    return Row(**{**plain, "runs": runs})


def read_figures() -> dict[tuple[str, str], Row]:
    """Return the rows of ``docs/support-matrix.json`` by model and exporter."""
    rows = [from_dict(plain) for plain in json.loads(FIGURES.read_text())["rows"]]
    return {(row.model, row.exporter): row for row in rows}


# --- where the models come from -----------------------------------------------------------------------------


def architecture_file(name: str, exporter: str, folder: Path) -> Path:
    """Export an architecture to a folder, and return the path."""
    import architectures

    path = folder / f"{name}.{exporter}.onnx"
    path.write_bytes(architectures.export(name, "ts" if exporter == "ts" else "dynamo"))
    return path


def rows_of_architectures(only: str, folder: Path) -> Iterator[Row]:
    import architectures

    for name in architectures.ARCHITECTURES:
        for exporter in EXPORTERS:
            if wanted(name, only):
                yield make_row(name, exporter, architecture_file(name, exporter, folder), latency=True)


def rows_of_folder(models: Path, only: str, folder: Path) -> Iterator[Row]:
    for source in sorted(models.glob("*.onnx")):
        name, _, exporter = source.stem.rpartition(".")
        if exporter not in EXPORTERS:
            name, exporter = source.stem, ""
        if not wanted(name, only):
            continue
        path = folder / source.name
        path.symlink_to(source.resolve())
        data = source.with_name(source.name + ".data")
        if data.exists():
            path.with_name(data.name).symlink_to(data.resolve())
        yield make_row(name, exporter, path, latency=True)


def wanted(name: str, only: str) -> bool:
    return not only or any(part in name for part in only.split(","))


# --- the page -----------------------------------------------------------------------------------------------

HEAD = (
    "model", "exporter", "nodes", "groups open", "parameters kept", "MACs kept", "proof error", "seconds",
    "latency", "heads: parameters", "inexact: parameters", "inexact: MACs", "why groups stay",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """Return the row of the table."""
    run, inexact, heads = row.runs["channels"], row.runs["inexact"], row.runs.get("heads")
    more = inexact.exit_status == 0 and (inexact.parameters, inexact.macs) != (run.parameters, run.macs)
    return [
        row.model,
        row.exporter,
        str(row.nodes),
        f"{row.groups_open} of {row.groups_total}",
        _share(run, "parameters"),
        _share(run, "macs"),
        "" if run.error is None else f"{run.error:.0e}",
        "" if run.seconds is None else f"{run.seconds:.2f}",
        "" if run.latency is None else f"{run.latency:.2f}",
        "" if heads is None else _share(heads, "parameters"),
        _share(inexact, "parameters") if more else "",
        _share(inexact, "macs") if more else "",
        "; ".join(f"{count} {reason}" for reason, count in row.frozen.items()),
    ]


def _share(run: Run, what: str) -> str:
    value = getattr(run, what)
    return f"exit {run.exit_status}" if value is None else f"{value:.3f}"


def table(rows: Iterable[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = [HEAD, tuple("---" if name in (HEAD[0], HEAD[1], HEAD[-1]) else "--:" for name in HEAD)]
    lines += [tuple(cells(row)) for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


INTRODUCTION = """\
# Support matrix

What `onnxprune prune --pattern channels --amount 0.5` makes of the architectures in `tests/architectures`,
each exported by torch's TorchScript exporter (`ts`, opset 17) and by its current one (`dynamo`, opset 20),
with symbolic batch and length. Regenerate this page, in a few minutes, with

    python benchmarks/support_matrix.py --write

`tests/test_support_matrix.py` fails when a row gets worse than it stands here: fewer open groups, a larger
share kept, a proof that fails, another exit status.

- *groups open*: channel groups that may lose channels without `--allow-inexact`.
- *proof error*: largest relative difference between the cut model and its exact twin, at two batch sizes.
- *seconds*: load, analyse, plan, cut, prove, write and verify.
- *latency*: time of the pruned model over that of the original, batch 1, one thread; the models are so small
  that what does not shrink with them counts. Seconds and latency differ from machine to machine, and no test
  looks at them.
- *heads*: with `--pattern heads`, where there is attention.
- *inexact*: with `--allow-inexact`, where that makes a difference.
- *exit 4*: nothing can go.

"""


def versions() -> dict[str, str]:
    return {
        name: metadata.version(name) for name in ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
    }


def write(rows: list[Row]) -> None:
    """Write the page and the figures."""
    PAGE.parent.mkdir(exist_ok=True)
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    PAGE.write_text(f"{INTRODUCTION}Made with {made}.\n\n{table(rows)}")
    plain = ",\n".join(json.dumps(as_dict(row)) for row in rows)
    FIGURES.write_text(f'{{"versions": {json.dumps(versions())}, "rows": [\n{plain}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, help="a folder of .onnx files, instead of the architectures")
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--write", action="store_true", help="write docs/support-matrix.md and .json")
    options = parser.parse_args()
    if options.write and (options.models or options.only):
        parser.error("--write writes all architectures: leave out --models and --only")
    if options.models is None:
        import torch

        torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        found = (
            rows_of_architectures(options.only, Path(folder))
            if options.models is None
            else rows_of_folder(options.models, options.only, Path(folder))
        )
        for row in found:
            rows.append(row)
            print(" | ".join(cells(row)), file=sys.stderr, flush=True)
    if options.write:
        write(rows)
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
