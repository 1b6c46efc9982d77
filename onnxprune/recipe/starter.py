"""A model, perhaps data -> a commented recipe to begin with: what can be done, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxprune.advice.actions import Action
from onnxprune.advice.run import Advice, advise
from onnxprune.analyze import Analysis, analyze
from onnxprune.branches import find_branches
from onnxprune.calibration.noise import is_noise
from onnxprune.data import Dataset
from onnxprune.errors import LimitMissed, NothingToPrune, OnnxPruneError
from onnxprune.gates.settings import GateSettings
from onnxprune.measure.fitting import metric_for
from onnxprune.messages import one_line
from onnxprune.model.inputs import graph_inputs, symbol_of
from onnxprune.model.io import load
from onnxprune.pipeline import plan
from onnxprune.quantization.layers import find_layers, is_quantized
from onnxprune.quantization.preparing import prepared
from onnxprune.recipe.schema import Cleanup, Data, Finetune, Model, Output, Prune, Quantize, Run
from onnxprune.recipe.writing import RecipeText, path_from
from onnxprune.types import Plan
from onnxprune.user_code import is_reference
from onnxprune.wishes import samples_of

#: Share of the multiply-accumulates that is tried first.
TARGET = 0.5
#: What targets and gates are rounded to.
_STEP = 0.05
#: Above this share of what stays, a cut is not worth a stage.
_LEAST_GAIN = 0.95
#: Lines of what was measured.
_MOST_LINES = 6
#: Inputs whose shapes are shown.
_MOST_INPUTS = 3
#: Bytes of an int8 model to those of the same in float32: a fourth, and scales, and what stays float.
_INT8_SHARE = 0.35


@dataclass(frozen=True, slots=True)
class _Found:
    """What is known of a model.

    Attributes:
        model: as it is.
        analysis: of its channels.
        target: share of its multiply-accumulates that can be reached with channels, None if nothing can go.
        cut: the plan for it.
        why_not: why nothing can go, or why less than `TARGET`.
        form: that the model can be quantized to, None if it can't.
        why_no_form: why not.
        samples: that were given.
        metric: that fits them and the model; None where it can't be told.
        advice: figures, where there are some.
        no_advice: why not, where there are none.
    """

    model: ir.Model
    analysis: Analysis
    target: float | None
    cut: Plan | None
    why_not: str | None
    form: str | None
    why_no_form: str | None
    samples: Dataset | None
    metric: str | None
    advice: Advice | None
    no_advice: str | None

    @property
    def has_data(self) -> bool:
        """Whether there are samples that mean something."""
        return self.samples is not None and not self.samples.noise

    @property
    def open_kinds(self) -> set[str]:
        """Kinds of the channel groups that may lose something."""
        return {group.kind for group in self.analysis.groups if group.frozen is None}

    def action(self, fits: Callable[[Action], bool]) -> Action | None:
        """Return the first measured action of a kind."""
        actions = () if self.advice is None else self.advice.actions
        return next((each for each in actions if each.latency_ratio is not None and fits(each)), None)


def starter(
    model: str | Path,
    data: str | Path | None = None,
    *,
    folder: str | Path = ".",
    advice: Advice | None = None,
    time_limit: float = 30.0,
) -> str:
    """Return the text of a recipe for a model: TOML, each key with a comment, alternatives commented out.

    Args:
        model: the file.
        data: samples to calibrate with, as everywhere; what needs some is commented out without them.
        folder: where the recipe will lie; its paths are relative to that.
        advice: what `onnxprune.advise` said of this model and data.
        time_limit: seconds that `onnxprune.advise` may take where no advice is given; 0: it is not asked.

    Raises:
        ModelError: the model is missing or damaged.
        DataError: the data is, or does not fit the model.
        UsageError: a path that no recipe can hold.
    """
    found = _look(Path(model), data, advice, time_limit)
    text = RecipeText()
    text.say(f"onnxprune compress: {Path(model).name}")
    text.say(
        "Paths are relative to this file. --dry-run says what would be done; docs/recipe.md has all keys."
    )
    text.gap()
    for line in _what_is_known(found):
        text.say(line)
    _write_model(text, found, Path(model), data, Path(folder))
    _write_stages(text, found)
    _write_gates(text, found)
    _write_output(text, Path(model).stem)
    return str(text)


def _look(path: Path, data: str | Path | None, advice: Advice | None, time_limit: float) -> _Found:
    model = load(path)
    analysis = analyze(model)
    samples = samples_of(data, model, 0, None)
    target, cut, why_not = _reachable(model)
    form, why_no_form = _form(model, samples)
    metric, no_advice = None, "not asked for"
    try:
        if samples is not None and not samples.noise:
            metric = metric_for(samples, path, path)
        if advice is None and time_limit > 0:
            advice = advise(path, data=data, time_limit=time_limit)
    except OnnxPruneError as error:  # without figures the recipe is a recipe still
        no_advice = one_line(error)
    return _Found(
        model, analysis, target, cut, why_not, form, why_no_form, samples, metric, advice, no_advice
    )


def _form(model: ir.Model, samples: Dataset | None) -> tuple[str | None, str | None]:
    """Return what a model can be quantized to with these samples, or why it can't."""
    if is_quantized(model):
        return None, "the model is quantized already"
    layers = find_layers(prepared(model))[0]
    if not layers:
        return None, "the model has no layer with float32 weights"
    if samples is not None and not samples.noise:
        return "int8", None
    if 2 * sum(layer.op_type in ("MatMul", "Gemm") for layer in layers) >= len(layers):
        return "dynamic", None
    return None, "int8 takes the ranges of activations from calibration data"


def _reachable(model: ir.Model) -> tuple[float | None, Plan | None, str | None]:
    """Return the least share of the work, from `TARGET` on, that channels can be cut to, and the plan."""
    try:
        return TARGET, plan(model, target_macs=TARGET), None
    except NothingToPrune as error:
        return None, None, one_line(error)
    except LimitMissed as error:
        why, reached = one_line(error), error.reached
    if reached is None or (target := _up(reached + _STEP / 5)) > _LEAST_GAIN:
        return None, None, why
    try:
        return target, plan(model, target_macs=target), why
    except (LimitMissed, NothingToPrune) as error:
        return None, None, one_line(error)


def _up(share: float) -> float:
    return round(math.ceil(share / _STEP - 1e-9) * _STEP, 2)


def _what_is_known(found: _Found) -> list[str]:
    if found.advice is None:
        return [f"Nothing was measured ({found.no_advice}): onnxprune advise says what is worth it here."]
    measured = [
        f"- {action.title}: {action.latency_ratio.value:.2f}; {action.reason}"
        for action in found.advice.actions
        if action.latency_ratio is not None
    ]
    if not measured:
        return ["onnxprune advise found nothing that it could measure on this machine."]
    told = "onnxprune advise measured on this machine, as shares of the original's time:"
    return [told, *measured[:_MOST_LINES]]


def _write_model(text: RecipeText, found: _Found, model: Path, data: str | Path | None, folder: Path) -> None:
    text.gap()
    text.table("[model]", Model)
    text.key("path", path_from(folder, model))
    text.gap()
    text.table("[data]", Data)
    place = "calibration.npz"
    if data is not None:
        as_is = isinstance(data, str) and (is_noise(data) or (is_reference(data) and not Path(data).exists()))
        place = str(data) if as_is else path_from(folder, data)
    text.key("calibration", place, off=data is None)
    text.key("evaluation", "evaluation.npz", "for accuracy and gates: other samples, with labels", off=True)
    text.key("metric", found.metric or "top1", off=found.metric is None)
    text.gap()
    text.table("[run]", Run)
    text.key("folder", "run")
    text.key("seed", 0)
    text.key("threads", 1)
    symbolic = {
        str(value.name): list(found.analysis.shapes.input_shapes[str(value.name)])
        for value in graph_inputs(found.model)
        if any(symbol_of(value, axis) for axis in range(1, len(value.shape or ())))
    }
    if 0 < len(symbolic) <= _MOST_INPUTS:
        text.key("input_shapes", symbolic, off=True)


def _write_stages(text: RecipeText, found: _Found) -> None:
    text.gap()
    text.say("Stages, in their order. What is cut is proved, what is written is verified, at every one.")
    text.table("[[stages]]", Cleanup)
    text.key("kind", "cleanup", "removes channels that do nothing; the model computes the same")
    _write_pruning(text, found)
    text.gap()
    text.say("Tunes what is left; needs torch, and calibration data.")
    text.table("[[stages]]", Finetune, off=True)
    text.key("kind", "finetune")
    text.key("epochs", 10.0)
    text.key("distil", 0.5)
    _write_quantizing(text, found)


def _write_pruning(text: RecipeText, found: _Found) -> None:
    nothing, has_data = found.target is None, found.has_data
    text.gap()
    if found.why_not is not None:
        text.say(f"{'Not pruned' if nothing else f'Not {TARGET:g}'}: {found.why_not}.")
    text.table("[[stages]]", Prune, off=nothing)
    text.key("kind", "prune")
    text.key("pattern", "channels")
    text.key("target_macs", found.target or TARGET)
    text.key("target_latency", 0.5, off=True)
    text.key("recover", "reconstruct", off=not has_data)
    text.key("score", "obs" if has_data else "l2", off=True)
    text.key("protect", ["*head*"], off=True)
    if any(group.exact is False for group in found.analysis.groups):
        text.key("allow_inexact", True, off=True)
    for pattern in ("heads", "experts"):
        if pattern in found.open_kinds:
            _alternative(text, f"{pattern} alone", pattern, amount=0.25)
    branches, _ = find_branches(found.analysis.model.graph, found.analysis.shapes)
    if len(branches) > 3:
        _alternative(text, f"Whole residual branches: {len(branches)} can go", "layers", amount=0.25)
    _alternative(
        text, "Zeros: smaller once compressed, faster only on sparse tensor cores", "2:4", amount=None
    )


def _alternative(text: RecipeText, title: str, pattern: str, *, amount: float | None = None) -> None:
    text.gap()
    text.say(f"{title[0].upper()}{title[1:]}.")
    text.table("[[stages]]", Prune, off=True)
    text.key("kind", "prune")
    text.key("name", pattern.replace(":", "of"))
    text.key("pattern", pattern)
    if amount is not None:
        text.key("amount", amount)


def _slow_int8(found: _Found) -> float | None:
    """Return the share of the time that INT8 takes on this machine, where that is more than all of it."""
    int8 = found.action(lambda action: "INT8" in action.title)
    if found.form is None or int8 is None or int8.latency_ratio is None:
        return None
    return int8.latency_ratio.value if int8.latency_ratio.value > 1 else None


def _quantizes(found: _Found) -> bool:
    return found.form is not None and _slow_int8(found) is None


def _write_quantizing(text: RecipeText, found: _Found) -> None:
    text.gap()
    slow = _slow_int8(found)
    if found.why_no_form is not None:
        text.say(f"Not quantized: {found.why_no_form}.")
    elif slow is not None:
        text.say(f"Not quantized: INT8 took {slow:.2f} of the time here. It is smaller all the same.")
    text.table("[[stages]]", Quantize, off=not _quantizes(found))
    text.key("kind", "quantize", "last: fewer bits for each number")
    text.key("form", found.form or "int8", "int8 (with calibration data), dynamic, int4 or float16")
    text.key("max_drop", 0.01, off=True)
    text.key("keep_float", ["*head*"], off=True)


def _write_gates(text: RecipeText, found: _Found) -> None:
    text.gap()
    text.say("The model gets its name only if all of these hold: otherwise the exit status is 3.")
    text.table("[gates]", GateSettings)
    size = 1.0 if found.cut is None else found.cut.predicted[1].size_bytes / found.cut.predicted[0].size_bytes
    size *= _INT8_SHARE if _quantizes(found) else 1.0
    text.key("size_ratio", min(1.0, _up(size + 0.1)))
    timed = found.action(lambda action: action.worth)
    text.key("latency_ratio", 1.0 if timed is None else _LEAST_GAIN)
    text.key("accuracy_drop", 0.01, off=True)
    text.key("agreement", 0.95, off=True)
    text.key("segment_drop", 0.02, off=True)
    text.key("inconclusive", "fail")


def _write_output(text: RecipeText, name: str) -> None:
    text.gap()
    text.table("[output]", Output)
    for key, ending in (("model", "onnx"), ("plan", "plan"), ("json", "json"), ("html", "html"),
                        ("markdown", "md"), ("junit", "xml")):  # fmt: skip
        text.key(key, f"{name}.small.{ending}")
    text.key("accepted", f"{name}.accepted.json", off=True)
