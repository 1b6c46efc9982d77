"""A model in fewer bits: int8 or int4 weights, or float16, with the zeros that pruning left in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.calibration.activations import BATCH
from onnxprune.calibration.noise import notes_on_noise
from onnxprune.data import DataReader, Dataset
from onnxprune.errors import ModelError, NothingToPrune, PlanError, UsageError
from onnxprune.messages import quoted
from onnxprune.model.io import load
from onnxprune.model.nonfinite import find_nonfinite_among
from onnxprune.model.size import files_bytes, tensor_bytes
from onnxprune.ops.weights import locate_weights
from onnxprune.pipeline import save_examined
from onnxprune.planning.watch import Watch
from onnxprune.plans import load_plan
from onnxprune.quantization.layers import Layer, find_layers, is_quantized, matching
from onnxprune.quantization.preparing import prepared
from onnxprune.quantizing.forms import FORMS, Made, Wish, make_form
from onnxprune.quantizing.int8 import COMPUTING, Settings
from onnxprune.quantizing.judge import Judge, Samples, divide
from onnxprune.registry import did_you_mean
from onnxprune.runtime import admit
from onnxprune.runtime.quantizer import CALIBRATIONS
from onnxprune.types import Check, Plan, Report, Skipped
from onnxprune.verification import verify
from onnxprune.verification.plan import check_declared_zeros
from onnxprune.verification.quantized import check_patterns_kept, check_zeros_kept
from onnxprune.wishes import samples_of

Model = ir.Model | str | Path
Data = Dataset | DataReader | str | Path

#: Whether a step that may help is tried: where it does, always, or never.
CHOICES = ("auto", "on", "off")


@dataclass(frozen=True, slots=True)
class QuantizeResult:
    """A quantized model in memory.

    Attributes:
        model: with weights of fewer bits; the one that was given is not changed.
        report: a row for each layer, what each step gave, what stays in float and why.
        original: what was given.
        form: what the weights became.
    """

    model: ir.Model
    report: Report
    original: ir.Model
    form: str


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
    computing: str = "auto",
    equalize: str = "auto",
    correct_bias: str = "auto",
    block_size: int = 32,
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
        form: ``int8`` (weights, and activations by ranges from data), ``dynamic`` (weights; ranges of
            activations are found in every run), ``int4`` (weights of large matrix products) or ``float16``.
        data: samples that ranges of activations are taken from: see `onnxprune.load_data`.
        reference: the model that accuracy is compared with; the model itself by default.
        evaluation: samples that accuracy is measured on; by default a quarter of ``data``, which is then not
            calibrated on.
        metric: see `onnxprune.validate`; the one that fits the samples by default: ``top1`` or ``mse`` with
            labels, ``agreement`` with the reference or ``cosine`` without.
        max_drop: what the metric may lose; 0.01 by default for shares, a tenth for other figures. Layers go
            back to float, the most sensitive first, until it is met.
        keep_float: globs over names of nodes and weights that stay in float.
        per_channel: a scale for each output channel of a weight, not one for all of it.
        calibration: ``minmax`` (the least and the greatest value), ``percentile`` or ``entropy``.
        computing: of int8: ``integer``, ``dynamic`` (matrix products alone, with ranges found in every run),
            ``float`` (weights are stored in 8 bits, and made float when the model is loaded), or ``auto``:
            what is fastest here, which is timed.
        equalize: even out the ranges of the channels between layers: ``auto`` (where that brings the outputs
            closer), ``on`` or ``off``.
        correct_bias: let biases make up for the mean error of rounded weights: likewise.
        block_size: weights that share a scale in int4: a power of two from 16 on.
        plan: whose zeros must be there.
        seed: of everything random.
        batch: samples of one run on the data, where the model's first axis is symbolic.
        threads: of ONNX Runtime.
        input_shapes: concrete shapes by input name for symbolic axes.
        progress: called with the share that is done, in (0, 1].

    Raises:
        UsageError: options that make no sense, alone or together.
        NothingToPrune: the model is quantized, or has no layer that can be; ``reasons`` says why.
        DataError: the data is damaged, or does not fit the model.
        ModelError: the model can't be quantized.
        PlanError: the plan's zeros are not in the model.
        RuntimeFailure: ONNX Runtime can't quantize it.
    """
    _check_choices(form=form, calibration=calibration, computing=computing, equalize=equalize,
                   correct_bias=correct_bias)  # fmt: skip
    if block_size < 16 or block_size & (block_size - 1):
        raise UsageError(f"block_size is a power of two from 16 on, not {block_size}")
    watch = Watch(progress=progress)
    with watch.stage("read"):
        given = _loaded(model)
        admit(given)
        if is_quantized(given):
            raise NothingToPrune("the model is quantized already: give the one that it was made from")
        problem = find_nonfinite_among(weight.tensor for weight in locate_weights(given)[0])
        if problem is not None:
            raise ModelError(problem)
        _check_declared(plan, given)
        found = samples_of(data, given, seed, input_shapes)
        if form == "int8" and found is None and computing != "float":
            raise UsageError(
                "int8 takes the ranges of activations from samples: give data, or choose the form dynamic, "
                "or computing float"
            )
        samples = divide(given, found, samples_of(evaluation, given, seed, input_shapes))
    with watch.stage("prepare"):
        work = prepared(given)
        layers, skipped = _layers_of(work, form, keep_float)
    watch.tell(0.1)
    with watch.stage("judge"):
        against = given if reference is None else _loaded(reference)
        judge = _judge(given, against, samples, metric, max_drop, batch, threads)
    watch.tell(0.2)
    settings = Settings(calibration, per_channel, computing, equalize, correct_bias, batch, threads, seed)
    wish = Wish(form, settings, block_size, tuple(keep_float))
    with watch.stage("quantize"):
        made = make_form(work, layers, None if samples is None else samples.calibration, judge, wish)
    watch.tell(1.0)
    notes = [*skipped, *made.notes, *(judge.notes if judge else ()), *(samples.notes if samples else ())]
    report = _report(given, made, judge, samples, [*notes, *notes_on_noise(found)])
    return QuantizeResult(made.model, replace(report, seconds=dict(watch.seconds)), given, form)


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
        VerificationError: the file is not what it should be, or a zero is lost; nothing was written.
    """
    sizes: list[int] = []

    def examine(temporary: Path) -> Sequence[Check]:
        sizes.append(files_bytes(temporary))
        checks = list(verify(temporary, against=against).checks)
        if all(check.passed for check in checks):
            written = load(temporary)
            kept = check_patterns_kept(written, result.original)
            checks += [check_zeros_kept(written, result.original), *([] if kept is None else [kept])]
        return checks

    report = save_examined(
        result.model,
        path,
        result.report,
        examine,
        external_data=external_data,
        sparse_storage=sparse_storage,
    )
    size: dict[str, Any] = {"file_bytes": sizes[-1]}
    if against is not None:
        before = files_bytes(against)
        size = {"file_bytes_before": before, **size, "times_smaller": round(before / sizes[-1], 2)}
    sections = {**report.sections, "size": {**report.sections.get("size", {}), **size}}
    return replace(report, sections=sections)


def _loaded(model: Model) -> ir.Model:
    return model if isinstance(model, ir.Model) else load(model)


def _check_declared(plan: Plan | str | Path | None, model: ir.Model) -> None:
    """Refuse a plan whose zeros are not in the model; once there, every zero is verified to stay."""
    declared = load_plan(plan) if isinstance(plan, (str, Path)) else plan
    if declared is not None and declared.masks:
        check = check_declared_zeros(model, declared.masks)
        if not check.passed:
            raise PlanError(f"{check.detail}; apply the plan to the model first (onnxprune apply)")


def _layers_of(work: ir.Model, form: str, keep_float: Sequence[str]) -> tuple[list[Layer], list[Skipped]]:
    """Return the layers that are to be quantized, and why others are not."""
    layers, skipped = find_layers(work)
    left = matching(layers, keep_float)
    skipped += [Skipped(name, f"stays in float: {quoted(glob)} asks for it") for name, glob in left.items()]
    layers = [layer for layer in layers if layer.name not in left]
    if not layers and form != "float16":
        reasons = [f"{note.name}: {note.reason}" for note in skipped]
        raise NothingToPrune("no layer of the model can be quantized", reasons)
    return layers, skipped


def _judge(
    given: ir.Model,
    reference: ir.Model,
    samples: Samples | None,
    metric: str | None,
    max_drop: float | None,
    batch: int,
    threads: int,
) -> Judge | None:
    if samples is None:
        if metric is not None or max_drop is not None:
            raise UsageError("metric and max_drop are judged on samples: give evaluation, or data")
        return None
    return Judge(
        given, reference, samples.judged, metric=metric, max_drop=max_drop, batch=batch, threads=threads
    )


def _report(
    given: ir.Model, made: Made, judge: Judge | None, samples: Samples | None, notes: Sequence[Skipped]
) -> Report:
    before, after = tensor_bytes(given), tensor_bytes(made.model)
    summary: dict[str, Any] = {"form": made.title, **made.summary}
    if judge is not None and samples is not None:
        summary |= {
            "metric": judge.metric,
            "it may lose": judge.bound,
            "calibration samples": len(samples.calibration),
            "samples judged on": len(samples.judged),
        }
    sections: dict[str, Any] = {"quantization": summary}
    if made.steps:
        sections["steps"] = list(made.steps)
    sections["layers"] = list(made.rows)
    sections["size"] = {"tensor_bytes_before": before, "tensor_bytes": after}
    return Report(f"quantized: {made.title}", sections, (), tuple(dict.fromkeys(notes)))


def _check_choices(**given: str) -> None:
    known = {
        "form": FORMS, "calibration": tuple(CALIBRATIONS), "computing": COMPUTING, "equalize": CHOICES,
        "correct_bias": CHOICES,
    }  # fmt: skip
    for name, value in given.items():
        if value not in known[name]:
            hint = did_you_mean(value, known[name])
            raise UsageError(f"{name} is one of {', '.join(known[name])}, not {quoted(value)}{hint}")
