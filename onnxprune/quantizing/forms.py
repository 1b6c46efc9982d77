"""Each form that weights can take: the model, a row for each layer, and what is to be said about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.errors import ModelError, NothingToPrune
from onnxprune.messages import quoted
from onnxprune.model.stored import all_nodes, stored_values, tensor_of
from onnxprune.model.streaming import read_pieces
from onnxprune.quantization.forms import in_dynamic, in_float16, in_four_bits, saturates, store_in
from onnxprune.quantization.layer_effects import errors_at_layers
from onnxprune.quantization.layers import Layer, channels_of, is_product
from onnxprune.quantization.output_errors import OutputError
from onnxprune.quantization.search import FLOAT, INTEGER, STORED
from onnxprune.quantization.stored_weights import LEAST_SIZE
from onnxprune.quantizing.int8 import Settings, int8, stored_without_data
from onnxprune.quantizing.judge import Judge
from onnxprune.types import Skipped

#: What weights become.
FORMS = ("int8", "dynamic", "int4", "float16")

#: What int8 is called, by the way that it computes.
_TITLES = {
    "integer": "int8",
    "dynamic": "int8 products, ranges found in each run",
    "float": "int8 weights, computed in float",
}

#: Matrices with fewer weights gain little from 4 bits.
LARGE = 1 << 14

#: Bytes that a product in integers takes at least beyond one in float: it is five nodes.
_PRODUCT_BYTES = 100

#: Operators on lists and optional values.
_LISTS = frozenset((
    "ConcatFromSequence", "Optional", "OptionalGetElement", "SequenceAt", "SequenceConstruct",
    "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence",
))  # fmt: skip

#: The largest and the smallest magnitude of float16.
_LARGEST_HALF = 65504.0
_SMALLEST_HALF = 2.0**-24

#: Samples on which errors are measured layer by layer.
_LOOKED_AT = 16


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks for; see `onnxprune.quantize`."""

    form: str
    settings: Settings
    block_size: int
    keep_float: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Made:
    """A quantized model, and what there is to say of it.

    Attributes:
        model: the model.
        title: what was done, in a few words.
        rows: one for each layer.
        steps: what each step gave.
        summary: figures of the whole.
        notes: what was left alone, and why.
    """

    model: ir.Model
    title: str
    rows: Sequence[Mapping[str, Any]]
    steps: Sequence[Mapping[str, Any]] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[Skipped] = ()


def make_form(
    work: ir.Model, layers: Sequence[Layer], data: Dataset | None, judge: Judge | None, wish: Wish
) -> Made:
    """Make the form that is wished for.

    Args:
        work: from `onnxprune.quantization.preparing.prepared`; not changed.
        layers: that may be quantized.
        data: to calibrate on.
        judge: of what it costs; None without samples.
        wish: what is asked for.

    Raises:
        NothingToPrune: there is no layer of the kind that the form takes.
        RuntimeFailure: ONNX Runtime can't quantize the model.
    """
    makers = {"int8": _int8, "dynamic": _dynamic, "int4": _four_bits, "float16": _half}
    return makers[wish.form](work, layers, data, judge, wish)


def _int8(
    work: ir.Model, layers: Sequence[Layer], data: Dataset | None, judge: Judge | None, wish: Wish
) -> Made:
    if data is None or judge is None:
        model = stored_without_data(work, layers, wish.settings)
        places = dict.fromkeys((layer.name for layer in layers), STORED)
        rows = _rows(layers, places, wish, {}, {}, {})
        return Made(model, _TITLES["float"], rows)
    way, found, maker = int8(work, layers, data, judge, wish.settings)
    model = found.candidate.made
    errors = _errors(found.candidate.work, model, layers, data, wish)
    rows = _rows(layers, found.places, wish, errors, found.effects, found.reasons)
    summary: dict[str, Any] = {f"time beside float, {name}": round(t, 3) for name, t in maker.times.items()}
    if way == "integer" and saturates():
        summary["weights"] = "7 bits: products of 8 bits can overflow on this processor, which has no VNNI"
    return Made(model, _TITLES[way], rows, maker.trail.steps, summary, maker.notes)


def _dynamic(
    work: ir.Model, layers: Sequence[Layer], data: Dataset | None, judge: Judge | None, wish: Wish
) -> Made:
    """MatMul in integers, ranges found in each run; other layers are stored in 8 bits."""
    products = [layer for layer in layers if is_product(layer)]
    if not products:
        reasons = [
            f"{layer.name}: {layer.op_type} pays in integers only with ranges from data" for layer in layers
        ]
        raise NothingToPrune("the model has no MatMul with a stored weight: choose the form int8", reasons)
    saved = 3 * sum({layer.weight: layer.size for layer in products}.values())
    if saved < _PRODUCT_BYTES * len(products):
        why = "its nodes would take more than {} weights save"
        reasons = [f"{layer.name}: {why.format(layer.size)}" for layer in products]
        told = f"{len(products)} products with {saved // 3} weights between them"
        raise NothingToPrune(f"{told}: in integers they would take more room than in float", reasons)
    if data is not None and judge is not None:
        settings = replace(wish.settings, computing="dynamic")
        return _int8(work, layers, data, judge, replace(wish, settings=settings))
    model = in_dynamic(work, [layer.name for layer in products], per_channel=wish.settings.per_channel)
    others = [layer for layer in layers if not is_product(layer)]
    store_in(model, work, others, per_channel=wish.settings.per_channel)
    places = {layer.name: INTEGER if is_product(layer) else STORED for layer in layers}
    return Made(model, _TITLES["dynamic"], _rows(layers, places, wish, {}, {}, {}))


def _four_bits(
    work: ir.Model, layers: Sequence[Layer], data: Dataset | None, judge: Judge | None, wish: Wish
) -> Made:
    """Large MatMul in 4 bits; other layers are stored in 8 bits."""

    def is_large(layer: Layer) -> bool:
        return is_product(layer) and layer.size >= LARGE

    large = [layer for layer in layers if is_large(layer)]
    if not large:
        reasons = [
            f"{layer.name}: a {layer.op_type} with {layer.size} weights; 4 bits are for MatMul with {LARGE}"
            for layer in layers
        ]
        raise NothingToPrune("the model has no large MatMul: choose another form", reasons)
    model = in_four_bits(work, [layer.name for layer in large], block_size=wish.block_size)
    others = [layer for layer in layers if not is_large(layer)]
    store_in(model, work, others, per_channel=wish.settings.per_channel)
    steps = _judged(model, judge, "int4")
    places = {layer.name: "4 bits" if is_large(layer) else STORED for layer in layers}
    rows = _rows(layers, places, wish, _errors(work, model, others, data, wish), {}, {})
    return Made(model, "int4 weights of large matrix products", rows, steps)


def _half(
    work: ir.Model, layers: Sequence[Layer], _: Dataset | None, judge: Judge | None, wish: Wish
) -> Made:
    from fnmatch import fnmatchcase

    if not any(tensor_of(value).dtype == ir.DataType.FLOAT and value.uses() for value in _stored(work)):
        raise NothingToPrune("no float32 weight of the model is computed with", [])
    lists = next((node for node in all_nodes(work) if node.op_type in _LISTS), None)
    if lists is not None:
        raise ModelError(
            f"{quoted(lists.name)} is a {lists.op_type}: ONNX Runtime's converter to float16 knows no lists "
            "and optional values; choose another form"
        )
    kept = [
        str(node.name) for node in work.graph
        if any(fnmatchcase(str(node.name), glob) for glob in wish.keep_float)
    ]  # fmt: skip
    notes = list(_beyond_half(work))
    model = in_float16(work, kept)
    places = dict.fromkeys((layer.name for layer in layers), "16 bits")
    steps = _judged(model, judge, "float16")
    return Made(model, "float16", _rows(layers, places, wish, {}, {}, {}), steps, {}, notes)


def _stored(work: ir.Model) -> Iterator[ir.Value]:
    return (value for values in stored_values(work).values() for value in values)


def _beyond_half(work: ir.Model) -> list[Skipped]:
    """Say which weights have numbers that float16 does not have."""
    notes = []
    for value in _stored(work):
        tensor = tensor_of(value)
        if tensor.dtype != ir.DataType.FLOAT:
            continue
        over = under = 0
        for piece in read_pieces(tensor):
            size = np.abs(piece)
            over += int(np.count_nonzero(size > _LARGEST_HALF))
            under += int(np.count_nonzero((size > 0) & (size < _SMALLEST_HALF)))
        if over or under:
            said = [f"{over} numbers beyond 65504 become that"] if over else []
            said += [f"{under} too small to tell from zero become {_SMALLEST_HALF:.0e}"] if under else []
            notes.append(Skipped(str(value.name), f"float16: {'; '.join(said)}"))
    return notes


def _judged(model: ir.Model, judge: Judge | None, name: str) -> list[dict[str, Any]]:
    if judge is None:
        return []
    found = judge(model)
    row = {"step": name, "output_sqnr_db": round(found.error.sqnr_db, 2), **found.figures, "kept": True}
    note = "" if found.lost <= judge.bound else f"loses {found.lost:.4g}, more than {judge.bound:.4g}"
    return [{**row, "note": note}]


def _errors(
    work: ir.Model, made: ir.Model, layers: Sequence[Layer], data: Dataset | None, wish: Wish
) -> dict[str, float]:
    if data is None:
        return {}
    taken = feeds_by_batch(work, data, batch=min(_LOOKED_AT, wish.settings.batch))
    _, feeds = next(taken)
    return errors_at_layers(work, made, layers, [feeds], wish.settings.threads)


_BITS = {INTEGER: 8, STORED: 8, FLOAT: 32, "4 bits": 4, "16 bits": 16}
_COMPUTES = {INTEGER: "int8", STORED: "float", FLOAT: "float", "4 bits": "float", "16 bits": "float16"}


def _rows(
    layers: Sequence[Layer],
    places: Mapping[str, str],
    wish: Wish,
    errors: Mapping[str, float],
    effects: Mapping[str, OutputError],
    reasons: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Return a row for each layer: bits, scales, how it computes, its error, and why it is not more."""
    rows = []
    for layer in layers:
        place = places[layer.name]
        reason = reasons.get(layer.name, "")
        if place == STORED and layer.size < LEAST_SIZE:
            place, reason = FLOAT, "so small that scales would take more than they save"
        bits = _BITS[place]
        several = f"{channels_of(layer)}, by channel" if wish.settings.per_channel else "1"
        scales = {4: f"by {wish.block_size} weights", 8: several}.get(bits, "none")
        effect = effects.get(layer.name)
        rows.append(
            {
                "layer": layer.name,
                "operator": layer.op_type,
                "weight": layer.weight,
                "weights": layer.size,
                "bits": bits,
                "scales": scales,
                "computes_in": _COMPUTES[place],
                "sqnr_db": _rounded(errors.get(layer.name)),
                "alone_sqnr_db": None if effect is None else _rounded(effect.sqnr_db),
                "reason": reason,
            }
        )
    return rows


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
