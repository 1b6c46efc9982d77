"""The page docs/latency.md: what was asked, what came out, and whether it is what was wanted."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rows import Row

from latency.grid import Run

#: A measured ratio in here delivers a target of 0.5.
DELIVERED = (0.45, 0.52)
COLD_SECONDS, WARM_SECONDS = 300, 60

#: Largest error of a prediction, as a share of what was measured.
PREDICTION_ERROR = 0.1

#: The other ways of this package, as `latency.rivals` calls them.
RIVALS = ("uniform", "global MACs")

Pairs = Sequence[tuple[Run, Row]]

INTRODUCTION = """# The budget is time

Does `onnxprune prune --target-latency` deliver the time that it is asked for, and is what it delivers
better than what other ways keep in the same time? Regenerate this page with

    python benchmarks/latency/run.py --models FOLDER --out docs

which takes hours, one run at a time, on a machine that does nothing else. The single figures are in
[latency.json](latency.json).

Times are ratios: a pruned model and the original take turns in one process, in an order that changes, and
the figure is the median of the ratios within a turn, with its 95 % bootstrap interval. *Control* is the
same figure for a second session of the original: how far it is from 1 is noise. *Beside ours*: the same
figure of another way's model and the one that was delivered, in turns.

*At the same time* means: the amount that goes is found by bisection on the time beside the delivered model.
Where no step of channel counts hits it within 2 %, the other way is given the next model that takes
**longer** (where nothing it makes takes as long, the slowest).
"""


def page(pairs: Pairs, facts: Mapping[str, Any]) -> str:
    """Return the whole page.

    Args:
        pairs: runs and their rows, in the order of the grid.
        facts: of the machine and packages, from `accuracy.page.about`.
    """
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    made = f"Made on {facts['processor']} ({facts['cores']} cores), {facts['system']}, "
    made += f"Python {facts['python']}, {versions}."
    earlier = sum(row.get("source", facts["source"]) != facts["source"] for _, row in pairs)
    if earlier:
        made += f" {earlier} of {len(pairs)} runs were done with earlier states of the package."
    parts = [INTRODUCTION, made + "\n"]
    for question, section in SECTIONS.items():
        of_question = [(run, row) for run, row in pairs if run.question == question]
        if of_question:
            parts.append(section(of_question))
    return "\n".join(parts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, words: int = 1) -> str:
    """Return a Markdown table whose first columns are words, and the others figures."""
    ruler = ["---" if number < words else "--:" for number in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ruler, *rows)) + "\n\n"


def interval(figures: Mapping[str, Any]) -> str:
    """Return a ratio with its interval."""
    return f"{figures['ratio']:.3f} ({figures['low']:.3f} to {figures['high']:.3f})"


def percent(shares: Sequence[float]) -> str:
    """Return the mean in percent, with the standard deviation of a sample where there are several."""
    spread = f" ± {100 * statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * statistics.fmean(shares):.1f}{spread}"


def verdict(what: str, holds: Sequence[bool]) -> str:
    """Say for how many something holds; nothing holds of none."""
    answer = "**yes**" if holds and all(holds) else "**no**"
    return f"- {what}: {answer}, {sum(holds)} of {len(holds)}.\n"


def whole(pairs: Pairs) -> Pairs:
    """Return the runs that did not fail."""
    return [(run, row) for run, row in pairs if "error" not in row]


def failures(pairs: Pairs) -> str:
    """Say which runs failed, and how."""
    return "".join(f"- Failed: {run.key}: `{row['error']}`\n" for run, row in pairs if "error" in row)


# --- is it delivered? ---------------------------------------------------------------------------------------

_DELIVERED = """## Delivered

Models with random weights, `--target-latency 0.5 --threads 2`, no data (score `l2`). *Cold*: with an empty
cache; *warm*: the same again in another process, with what that left there. *Seconds* are those of `prune`,
all of it. *Predicted at first*: the share of the time that the first choice was to take, before anything
was corrected.

"""

_KEPT = """What is kept at the same time. *Importance*: the geometric mean, over all layers that read a group,
of the share of its scores (`l2`) that the group keeps: see [budgets.md](budgets.md).

"""


def delivered(pairs: Pairs) -> str:
    """Return what came of a target on models with random weights."""
    done = whole(pairs)
    text = _DELIVERED + table(
        ("model", "ratio, cold", "warm", "control", "predicted at first", "rounds", "points timed",
         "seconds, cold", "warm"),
        (
            (run.model, interval(row["cold"]), interval(row["warm"]), f"{row['cold']['control']:.3f}",
             f"{row['cold']['rounds'][0]['predicted share']:.3f}", str(len(row["cold"]["rounds"])),
             str(row["cold"]["latency"]["points timed"]), f"{row['cold']['seconds']:.0f}",
             f"{row['warm']['seconds']:.0f}")
            for run, row in done
        ),
    )  # fmt: skip
    text += _KEPT + table(
        ("model", "way", "ratio", "beside ours", "importance", "ours"),
        (
            (run.model, name, interval(row[name]), f"{row[name]['beside ours']:.3f}",
             f"{row[name]['importance']:.4f}", f"{row['cold']['importance']:.4f}")
            for run, row in done for name in RIVALS if "error" not in row[name]
        ),
        words=2,
    )  # fmt: skip
    low, high = DELIVERED
    text += verdict(f"Ratios lie in {low} to {high}, cold and warm", of_all(pairs, lambda row: all(
        low <= row[name]["ratio"] <= high for name in ("cold", "warm")
    )))  # fmt: skip
    text += verdict("Cold in under 5 minutes", of_all(pairs, lambda r: r["cold"]["seconds"] < COLD_SECONDS))
    text += verdict("Warm in under 1 minute", of_all(pairs, lambda r: r["warm"]["seconds"] < WARM_SECONDS))
    for name in RIVALS:
        more = of_all(pairs, lambda r, n=name: r["cold"]["importance"] > r[n].get("importance", 1.0))
        text += verdict(f"More importance kept than by {name}", more)
    return text + failures(pairs)


def of_all(pairs: Pairs, holds: Callable[[Row], bool]) -> list[bool]:
    """Tell of each run whether something holds; of one that failed, nothing does."""
    return ["error" not in row and holds(row) for _, row in pairs]


# --- what is it worth? --------------------------------------------------------------------------------------

_ACCURACY = """## Accuracy at the same time

Trained models and data of [accuracy.md](accuracy.md), one thread, a batch with which a run takes over a
millisecond. All ways score with the default (`obs`) and repair with `reconstruct`, on the same 512
unlabelled samples; nothing is trained. *Ratios* and *beside ours*: a figure for each seed of the samples;
*top-1* with its standard deviation between the seeds.

"""


def accuracy(pairs: Pairs) -> str:
    """Return accuracies at the same time, a line for each model, target and way, over the seeds."""
    together: dict[tuple[str, float], list[Row]] = {}
    for run, row in whole(pairs):
        together.setdefault((run.model, run.options["target"]), []).append(row)
    rows: list[tuple[str, ...]] = []
    holds: dict[str, list[bool]] = {name: [] for name in RIVALS}
    for (model, target), found in together.items():
        ours = statistics.fmean(row["latency"]["top1"] for row in found)
        for way in ("latency", *RIVALS):
            figures = [row[way] for row in found if "error" not in row[way]]
            if not figures:
                continue
            top1 = [each["top1"] for each in figures]
            beside = (f"{each['beside ours']:.3f}" for each in figures if "beside ours" in each)
            rows.append(
                (model, str(target), "target in time" if way == "latency" else way,
                 ", ".join(f"{each['ratio']:.3f}" for each in figures), ", ".join(beside),
                 f"{statistics.fmean(each['MACs'] for each in figures):.3f}", percent(top1),
                 percent([found[0]["dense"]]))
            )  # fmt: skip
            if way in holds:
                holds[way].append(ours >= statistics.fmean(top1))
    head = ("model", "target", "way", "ratios", "beside ours", "MACs kept", "top-1 %", "dense %")
    text = _ACCURACY + table(head, rows, words=3)
    text += "".join(verdict(f"At least as accurate as {name}", held) for name, held in holds.items())
    return text + failures(pairs)


# --- Torch-Pruning ------------------------------------------------------------------------------------------

_TORCH = """## Torch-Pruning at the same time

The same networks as torch modules, with the weights of the same files; their batch norms, which the files
hold folded, are unfolded by the statistics of calibration samples. They are pruned by Torch-Pruning's
`MagnitudePruner` with `GroupMagnitudeImportance(p=2)` and `round_to=8` (which avoids slow counts), the
classifier left alone, exported by the same exporter, and brought to the time of the delivered model (that
of the seed with the median ratio) by bisection on `pruning_ratio`. *As it is*: what it gives, without any
repair. *With statistics*: the running statistics of its batch norms estimated anew on the same 512 samples
(three seeds), where it has any. Torch-Pruning has no repair of its own that needs no training, and nothing
is trained here. In the transformers it cuts hidden units alone. In `digits_residual` one of the two
branches of the concatenation is left whole: with both cut, Torch-Pruning 1.6.1 removes too few columns of
the layer behind the flattening, and the module does not run. *Unpruned*: its export with nothing removed,
which shows what the way through its environment costs. *Ours*: the mean over the seeds of the models
delivered above.

"""


def torch_pruning(pairs: Pairs) -> str:
    """Return Torch-Pruning's accuracies."""
    rows: list[tuple[str, ...]] = []
    holds = []
    for run, row in whole(pairs):
        for way in (name for name, figures in row.items() if isinstance(figures, Mapping)):
            figures = row[way]
            start = (run.model, str(run.options["target"]), way)
            if "error" in figures:
                rows.append((*start, "failed: " + figures["error"], "", "", "", ""))
                continue
            anew = figures.get("top1 with statistics by seed") or []
            missed = ", the fastest it gets" if figures.get("fastest it gets") else ""
            beside = f"{figures['beside ours']:.3f}{missed}" if "beside ours" in figures else ""
            ours = "" if way == "unpruned" else percent([run.options["ours"]])
            statistics_too = percent(anew) if anew else ""
            rows.append((*start, interval(figures), beside, percent([figures["top1"]]), statistics_too, ours))
            if way != "unpruned":
                best = max([figures["top1"], *([statistics.fmean(anew)] if anew else [])])
                holds.append(run.options["ours"] >= best)
    head = (
        "model", "target", "way", "ratio", "beside ours", "top-1 %, as it is", "with statistics", "ours",
    )  # fmt: skip
    held = verdict("Ours is at least as accurate as the better of both", holds)
    return _TORCH + table(head, rows, words=3) + held + failures(pairs)


# --- is it predicted? ---------------------------------------------------------------------------------------

_PREDICTION = """## Predicted against measured

Predicted / measured share of the original's time (and the relative error), one thread. All groups cut to
the same share: predicted from the timed parts, without having timed any cut model. A search for half of the
time: its first round is such a prediction, too; before the last round, the rounds before it were timed, and
corrected it.

"""


def prediction(pairs: Pairs) -> str:
    """Return predicted and measured ratios, and the errors."""
    rows, errors = [], []
    for run, row in whole(pairs):
        cuts = [
            (each["predicted"], each["ratio"]) for name, each in row.items() if name.startswith("uniform")
        ]
        rounds = [(each["predicted share"], each["measured share"]) for each in row["delivered"]["rounds"]]
        errors += [predicted / measured - 1 for predicted, measured in (*cuts, rounds[0])]
        shown = [f"{p:.3f} / {m:.3f} ({p / m - 1:+.1%})" for p, m in (*cuts, rounds[0], rounds[-1])]
        rows.append((run.model, *shown))
    head = ("model", "0.75 of every group", "0.5", "0.25", "target 0.5, first round", "last round")
    mean = statistics.fmean(abs(error) for error in errors) if errors else 0.0
    return (
        _PREDICTION
        + table(head, rows)
        + verdict("Within 10 % (cuts and first rounds)", [abs(error) <= PREDICTION_ERROR for error in errors])
        + (f"- The mean error is {mean:.1%}.\n" if errors else "")
        + failures(pairs)
    )


# --- what if it can't be? -----------------------------------------------------------------------------------


def unreachable(pairs: Pairs) -> str:
    """Return what the command line says to the impossible."""
    text = (
        "## Out of reach\n\nWhat the command line says, and its exit status, where a target can't be met.\n"
    )
    for _, row in whole(pairs):
        said = "\n".join(f"    {line}".rstrip() for line in row["said"])
        left = "; a file was written" if row["written"] else ""
        text += f"\n    $ {row['command']}\n{said}\n\nExit status {row['status']}{left}.\n"
    holds = of_all(pairs, lambda row: row["status"] == 3 and not row["written"])
    return text + "\n" + verdict("Exit status 3, and nothing written", holds) + failures(pairs)


SECTIONS: Mapping[str, Callable[[Pairs], str]] = {
    "delivered": delivered,
    "accuracy": accuracy,
    "torch_pruning": torch_pruning,
    "prediction": prediction,
    "unreachable": unreachable,
}
