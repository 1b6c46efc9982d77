"""A model in fewer bits: int8 or int4 weights, or float16, with the zeros that pruning left where they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.activations import BATCH, feeds_by_batch
from onnxprune.calibration.noise import notes_on_noise
from onnxprune.data import DataReader, Dataset
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.messages import quoted
from onnxprune.model.io import load
from onnxprune.pipeline import save_examined
from onnxprune.planning.watch import Watch
from onnxprune.plans import load_plan
from onnxprune.quantization.forms import in_int8
from onnxprune.quantization.layers import find_layers, is_quantized, matching
from onnxprune.quantization.preparing import prepared
from onnxprune.registry import did_you_mean
from onnxprune.runtime.quantizer import CALIBRATIONS
from onnxprune.types import Check, Plan, Report, Skipped
from onnxprune.verification import verify
from onnxprune.wishes import samples_of

Model = ir.Model | str | Path
Data = Dataset | DataReader | str | Path

#: What weights become.
FORMS = ("int8", "dynamic", "int4", "float16")

#: Whether a step that may help is tried: where it does, always, or never.
CHOICES = ("auto", "on", "off")

#: Samples that ranges of activations are taken from, at most.
CALIBRATION_SAMPLES = 512


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """A quantized model in memory.

    Attributes:
        model: with weights of fewer bits; the one that was given is not changed.
        report: a row for each layer, what each step gave, what stays in float and why.
        original: what was given.
        form: what the weights became.
        plan: whose zeros must be there, if one was given.
    """

    model: ir.Model
    report: Report
    original: ir.Model
    form: str
    plan: Plan | None = None


def quantize(
    model: Model,
    *,
    form: str = "int8",
    data: Data | None = None,
    reference: Model | None = None,
    evaluation: Data | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    keep_float: Sequence[str] = (),
    per_channel: bool = True,
    calibration: str = "minmax",
    equalize: str = "auto",
    correct_bias: str = "auto",
    plan: Plan | str | Path | None = None,
    seed: int = 0,
    batch: int = BATCH,
    threads: int = 1,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[float], None] | None = None,
) -> QuantizeResult:
    """Give a model weights of fewer bits. Zeros stay zeros.

    Args:
        model: a file, or from `onnxprune.load`; not changed.
        form: ``int8`` (weights and activations, ranges from data), ``dynamic`` (weights; ranges of
            activations are found in every run), ``int4`` (weights of large matrix products alone) or
            ``float16``.
        data: samples that ranges of activations are taken from: see `onnxprune.load_data`.
        reference: the model that accuracy is compared with; the model itself by default.
        evaluation: samples that accuracy is measured on; some of ``data`` by default, which are then not
            calibrated on.
        metric: see `onnxprune.validate`; one that fits the data by default.
        max_drop: what the metric may lose. Layers go back to float, the most sensitive first, until it is met.
        keep_float: globs over names of nodes and weights that stay in float.
        per_channel: a scale for each output channel of a weight, not one for all of it.
        calibration: ``minmax`` (the least and the greatest value), ``percentile`` or ``entropy``.
        equalize: even out the ranges of neighbouring layers: ``auto`` (where that helps), ``on`` or ``off``.
        correct_bias: let biases make up for the mean error of each layer: likewise.
        plan: whose zeros must be there afterwards.
        seed: of everything random.
        batch: samples of one run on the data, where the model's first axis is symbolic.
        threads: of ONNX Runtime.
        input_shapes: concrete shapes by input name for symbolic axes.
        progress: called with the share that is done, in (0, 1].

    Raises:
        UsageError: options that make no sense, alone or together.
        NothingToPrune: the model has no layer that can be quantized; ``reasons`` says why.
        DataError: the data is damaged, or does not fit the model.
        ModelError: the model can't be quantized.
        RuntimeFailure: ONNX Runtime can't quantize it.
    """
    _check_choices(form=form, calibration=calibration, equalize=equalize, correct_bias=correct_bias)
    watch = Watch(progress=progress)
    with watch.stage("read"):
        given = model if isinstance(model, ir.Model) else load(model)
        samples = samples_of(data, given, seed, input_shapes)
        if is_quantized(given):
            raise UsageError("the model is quantized already: give the one that it was made from")
        if form == "int8" and samples is None:
            raise UsageError(
                "int8 takes ranges of activations from samples: give data, or choose the form dynamic"
            )
        declared = load_plan(plan) if isinstance(plan, (str, Path)) else plan
    with watch.stage("prepare"):
        work = prepared(given)
        layers, skipped = find_layers(work)
        left = matching(layers, keep_float)
        skipped += [
            Skipped(name, f"stays in float: {quoted(glob)} asks for it") for name, glob in left.items()
        ]
        layers = [layer for layer in layers if layer.name not in left]
        if not layers:
            reasons = [f"{note.name}: {note.reason}" for note in skipped]
            raise NothingToPrune("no layer of the model can be quantized", reasons)
    assert samples is not None
    with watch.stage("quantize"):
        runs = range(-(-CALIBRATION_SAMPLES // batch))
        taken = feeds_by_batch(work, samples, batch=batch)
        feeds = [inputs for _, (_, inputs) in zip(runs, taken, strict=False)]
        names = [layer.name for layer in layers]
        quantized = in_int8(work, names, feeds, calibration=calibration, per_channel=per_channel)
    sections: dict[str, Any] = {
        "layers": [
            {
                "layer": layer.name,
                "weight": layer.weight,
                "bits": 8,
                "scales": "per channel" if per_channel else "one",
            }
            for layer in layers
        ]
    }
    report = Report(
        f"quantized to {form}", sections, (), (*skipped, *notes_on_noise(samples)), dict(watch.seconds)
    )
    return QuantizeResult(quantized, report, given, form, declared)


def save_quantized(
    result: QuantizeResult,
    path: str | Path,
    *,
    against: str | Path | None = None,
    external_data: bool | None = None,
    sparse_storage: bool | None = None,
) -> Report:
    """Write a quantized model, verified before it appears under its name.

    Args:
        result: from `quantize`.
        path: the output; must not be an input.
        against: the file that was quantized: interface and size are compared with it.
        external_data: weights beside the model; None for as it was.
        sparse_storage: weights as sparse initializers where that is smaller; None for as they were.

    Returns:
        The report of the result, with the checks of the file.

    Raises:
        OutputError: the file can't be written.
        VerificationError: the file is not what it should be; nothing was written.
    """

    def examine(temporary: Path) -> Sequence[Check]:
        return verify(temporary, against=against).checks

    return save_examined(
        result.model,
        path,
        result.report,
        examine,
        external_data=external_data,
        sparse_storage=sparse_storage,
    )


def _check_choices(**given: str) -> None:
    known = {
        "form": FORMS, "calibration": tuple(CALIBRATIONS), "equalize": CHOICES, "correct_bias": CHOICES
    }  # fmt: skip
    for name, value in given.items():
        if value not in known[name]:
            hint = did_you_mean(value, known[name])
            raise UsageError(f"{name} is one of {', '.join(known[name])}, not {quoted(value)}{hint}")
