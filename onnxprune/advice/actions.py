"""Trials -> what to do, the most gain for the least risk first, and what is not worth doing."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from onnxprune.advice.accuracy import Accuracy
from onnxprune.advice.candidates import FOLD
from onnxprune.advice.trials import Trial
from onnxprune.measure.intervals import Estimate

#: What an expected gain rests on.
Basis = Literal["measured", "bounded", "unknown"]

#: What users risk, and what a gain is divided by for it.
Risk = Literal["none", "low", "medium", "high", "very high"]
_WEIGHTS: Mapping[Risk, float] = {"none": 0.5, "low": 1.0, "medium": 2.5, "high": 6.0, "very high": 32.0}

#: What a gain is divided by that was not measured, or not clearly.
_DOUBT = 1.5

#: Share of the accuracy that may be lost, by the risk that this is called.
_LOST: tuple[tuple[float, Risk], ...] = ((0.002, "none"), (0.01, "low"), (0.03, "medium"), (0.1, "high"))

#: A gain below this share of the time is not worth a changed model.
LEAST_GAIN = 0.05

#: Of the share of the multiply-accumulates that goes, the part of the time that must go with it.
LEAST_RETURN = 0.35

#: By share of what goes: of channels, heads and experts; and of layers, which are missed sooner.
_AMOUNTS: tuple[tuple[float, Risk], ...] = ((0.1, "low"), (0.3, "medium"), (0.6, "high"))
_DEPTHS: tuple[tuple[float, Risk], ...] = ((0.1, "medium"), (0.3, "high"))


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do, or not to.

    Attributes:
        title: in a few words.
        command: the command line, or where to find how; None where there is nothing to run.
        worth: whether it is advised.
        latency_ratio: of the result to the original, measured here; None where it was not.
        bound: the least that it can be, by Amdahl's law; None where nothing is known.
        size_ratio: bytes of weights to those of the original; None where it is not known.
        risk: of losing accuracy.
        accuracy: what it costs, on data; None without data, a sentence where it can't be said.
        reason: why to do it, or why not.
        basis: what the expected gain rests on: "measured"; "bounded", which is Amdahl's law over the measured
            times of layers; or "unknown".
        merit: logarithm of the speed-up (over that of folding constants) for each unit of risk.
    """

    title: str
    command: str | None
    worth: bool
    latency_ratio: Estimate | None
    bound: float | None
    size_ratio: float | None
    risk: Risk
    accuracy: Accuracy | str | None
    reason: str
    basis: Basis = "measured"
    merit: float = 0.0


@dataclass(frozen=True, slots=True)
class Words:
    """What command lines are made of.

    Attributes:
        model: as the user gave it.
        data: the same, or None.
        flags: options of the setting that ``prune`` takes too.
    """

    model: str
    data: str | None
    flags: Sequence[str] = ()

    def prune(self, trial: Trial) -> str:
        """Return the command line that makes the model of a trial."""
        candidate = trial.candidate
        stem = self.model.removesuffix(".onnx")
        suffix = candidate.pattern.replace(":", "of")
        if candidate.amount is not None:
            suffix += f"{100 * (1 - candidate.amount):.0f}"
        words = ["onnxprune", "prune", self.model, "-o", f"{stem}.{suffix}.onnx"]
        if candidate.pattern != "channels":
            words += ["--pattern", candidate.pattern]
        if candidate.amount is not None:
            words += ["--amount", f"{candidate.amount:g}"]
        for name, value in candidate.options.items():
            if name != "data":
                words += [f"--{name.replace('_', '-')}", str(value)]
        if self.data is not None and "recover" in candidate.options:
            words += ["--data", self.data]
        return shlex.join([*words, *self.flags])

    def quantize(self) -> str:
        """Return the command line that makes the model in int8, in integers as it was timed."""
        words = ["onnxprune", "quantize", self.model, "-o", f"{self.model.removesuffix('.onnx')}.int8.onnx"]
        return shlex.join([*words, "--data", self.data or "random:64", "--computing", "integer"])


def actions_of(
    trials: Sequence[Trial],
    accuracies: Mapping[str, Accuracy | str],
    words: Words,
    folded: float = 1.0,
) -> tuple[Action, ...]:
    """Return what to do first, and then what was tried and is not worth doing.

    Args:
        trials: of the candidates.
        accuracies: what some of them cost, by name of the candidate.
        words: for the command lines.
        folded: share of the time that folding constants alone leaves, if no trial says so better.
    """
    for trial in trials:
        if trial.candidate.pattern == FOLD and trial.ratio is not None and _is_clear(trial):
            folded = min(1.0, trial.ratio.value)
    found = [_action(trial, accuracies.get(trial.candidate.name), words, folded) for trial in trials]
    worth = sorted((a for a in found if a.worth), key=lambda action: -action.merit)
    return (*worth, *(action for action in found if not action.worth))


def _action(trial: Trial, accuracy: Accuracy | str | None, words: Words, folded: float) -> Action:
    candidate = trial.candidate
    risk = _risk(trial, accuracy)
    alone = folded if candidate.pattern not in ("int8", "2:4", FOLD) else 1.0
    worth, reason = _judgement(trial, accuracy, alone)
    if candidate.pattern == FOLD:
        command = None
    else:
        command = words.quantize() if candidate.pattern == "int8" else words.prune(trial)
    return Action(
        title=candidate.name, command=command, worth=worth, latency_ratio=trial.ratio, bound=trial.bound,
        size_ratio=trial.size_ratio, risk=risk, accuracy=accuracy,
        reason=reason, basis=_basis(trial), merit=_merit(trial, risk, alone),
    )  # fmt: skip


def _basis(trial: Trial) -> Basis:
    if _is_clear(trial):
        return "measured"
    return "unknown" if trial.bound is None else "bounded"


def _is_clear(trial: Trial) -> bool:
    """Tell whether a trial was timed, and says something."""
    return trial.ratio is not None and trial.verdict != "inconclusive"


def _merit(trial: Trial, risk: Risk, folded: float) -> float:
    left, doubt = (trial.bound, _DOUBT)
    if trial.ratio is not None and _is_clear(trial):
        left, doubt = trial.ratio.high, 1.0  # what is sure of it
    if left is None:
        return 0.0
    return -math.log(max(left, 1e-9) / folded) / _WEIGHTS[risk] / doubt


def _risk(trial: Trial, accuracy: Accuracy | str | None) -> Risk:
    if isinstance(accuracy, Accuracy) and accuracy.lost is not None:
        return _at(_LOST, accuracy.lost)
    candidate = trial.candidate
    if candidate.pattern == "dead":
        return "none"
    if candidate.pattern == "int8":
        return "low"
    steps = _DEPTHS if candidate.pattern == "layers" else _AMOUNTS
    return _at(steps, 0.5 if candidate.amount is None else candidate.amount)


def _at(steps: tuple[tuple[float, Risk], ...], value: float) -> Risk:
    return next((risk for most, risk in steps if value <= most), "very high")


def _judgement(trial: Trial, accuracy: Accuracy | str | None, folded: float) -> tuple[bool, str]:
    """Tell whether to do it, and why; ``folded`` is what folding constants alone leaves of the time."""
    if trial.ratio is None:
        return _untimed(trial, folded)
    if trial.candidate.pattern == "2:4":
        return _of_zeros(trial, trial.ratio)
    if not _is_clear(trial):
        return _untimed(trial, folded)
    if not trial.faster:
        return False, _NOT_FASTER[str(trial.verdict)]
    if trial.candidate.pattern == FOLD:
        return False, "every pruned model gets this, before anything is removed"
    if trial.ratio.value > (1 - LEAST_GAIN) * folded and folded < 1:
        return False, "folding what is constant does as much, and removes nothing"
    if trial.ratio.value > 1 - LEAST_GAIN:
        return False, f"it saves {1 - trial.ratio.value:.1%} of the time, less than a changed model is worth"
    removed = 0.0 if trial.macs_ratio is None else 1 - trial.macs_ratio
    saved = 1 - trial.ratio.value / folded
    if saved < LEAST_RETURN * removed:
        return False, (
            f"a poor trade: {removed:.0%} of the multiply-accumulates go for {saved:.0%} of the time"
        )
    if isinstance(accuracy, Accuracy) and accuracy.lost is not None and accuracy.lost > _LOST[-1][0]:
        return False, f"{_lost(accuracy)}: too much"
    return True, _praise(trial, accuracy)


_NOT_FASTER = {
    "no difference": "no difference: the time does not change",
    "slower": "it is slower here",
}


def _untimed(trial: Trial, folded: float) -> tuple[bool, str]:
    """Judge by Amdahl's law what there was no time for, or too much noise."""
    why = trial.skipped or "the noise of this machine hides how much; a quiet machine would tell"
    if trial.bound is None or trial.macs_ratio is None:
        return False, why
    saved = 1 - trial.bound / folded
    worth = saved >= max(LEAST_GAIN, LEAST_RETURN * (1 - trial.macs_ratio))
    return worth, f"about {trial.bound:.2f} of the time would be left by Amdahl's law; {why}"


def _of_zeros(trial: Trial, ratio: Estimate) -> tuple[bool, str]:
    if trial.faster and ratio.value <= 1 - LEAST_GAIN:
        return True, "kernels of this provider leave out zeros of this pattern"
    return False, (
        "zeros save disk (compressed), not time: no kernel of this provider leaves them out, in any pattern"
    )


def _praise(trial: Trial, accuracy: Accuracy | str | None) -> str:
    candidate = trial.candidate
    if candidate.pattern == "dead":
        text = "these channels do nothing: without them the model computes the same"
    elif candidate.pattern == "int8":
        text = "integer kernels of this machine are faster, and weights take a fourth"
    elif "align" in candidate.options:
        text = _of_grid(trial)
    elif trial.macs_ratio is not None:
        text = f"{trial.macs_ratio:.0%} of the multiply-accumulates are left"
    else:
        text = "less is computed"
    if isinstance(accuracy, Accuracy):
        return f"{text}; {_lost(accuracy)}"
    if isinstance(accuracy, str):
        return f"{text}; what it costs can't be said: {accuracy}"
    if candidate.pattern == "dead":
        return text
    return f"{text}; what that costs is not known without --data"


def _of_grid(trial: Trial) -> str:
    """Tell whether channel counts off the grid cost anything, beyond that there are more of them."""
    if trial.ratio is None or trial.bound is None:
        return "kernels like these counts better"
    if trial.ratio.high < trial.bound:
        return f"counts off the grid of the kernels are dear: less work alone would leave {trial.bound:.2f}"
    return "less work explains it all: the counts as they are cost nothing more"


def _lost(accuracy: Accuracy) -> str:
    value = f"{accuracy.metric} {accuracy.value.value:.3g}"
    if accuracy.original is not None:
        return f"{value}, {accuracy.original.value:.3g} before"
    return f"{value} with the original"
