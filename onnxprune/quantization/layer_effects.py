"""What int8 costs, layer by layer: at the layer's own output, and at the outputs of the model.

The second is measured with one layer alone in int8: its weight and its input are rounded as they are in the
quantized model, and all else computes in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.tapping import open_taps
from onnxprune.model.names import Names, add_constant
from onnxprune.model.stored import stored_tensor
from onnxprune.quantization.layers import Layer
from onnxprune.quantization.output_errors import OutputError, Outputs, sqnr_db

Feeds = Mapping[str, npt.NDArray[Any]]

#: Values that are kept at once.
_TAPS = 16


def effects(
    layers: Sequence[Layer],
    alone: Callable[[Layer], ir.Model | None],
    outputs: Outputs,
) -> dict[str, OutputError]:
    """Return by layer what quantizing it alone changes at the outputs of the model.

    Args:
        layers: those that are asked for.
        alone: makes a model in which one layer alone is quantized; None where that layer never is.
        outputs: of the model in float.

    Raises:
        RuntimeFailure: a model can't be run.
    """
    made = ((layer.name, alone(layer)) for layer in layers)
    return {name: outputs.error_of(model) for name, model in made if model is not None}


def alone_in_int8(work: ir.Model, quantized: ir.Model, layer: Layer) -> ir.Model | None:
    """Return a copy of a float model in which one layer reads rounded numbers; None if it is not quantized.

    Args:
        work: the model in float; not changed.
        quantized: the same with all layers in integers, for the scales.
        layer: the one that is rounded.
    """
    node = next((node for node in quantized.graph if node.name == layer.name), None)
    return None if node is None else _alone(work, layer.name, node)


def _alone(work: ir.Model, name: str, quantized: ir.Node) -> ir.Model | None:
    """Return a copy in which one layer reads rounded numbers; None if the layer is not quantized."""
    given = _dequantizer(quantized, 0)
    weight = _dequantizer(quantized, 1)
    if given is None or weight is None:
        return None
    copy = work.clone()
    node = next(node for node in copy.graph if node.name == name)
    names = Names(copy.graph)
    source = node.inputs[0]
    if source is None:
        return None

    def constant(value: ir.Value | None) -> list[ir.Value]:
        tensor = None if value is None else stored_tensor(value)
        if tensor is None:
            return []
        fresh = names.fresh("rounding")
        return [add_constant(copy.graph, ir.Tensor(tensor.numpy(), name=fresh), fresh)]

    steps = [part for value in given.inputs[1:] for part in constant(value)]
    down = ir.node("QuantizeLinear", [source, *steps])
    up = ir.node("DequantizeLinear", [down.outputs[0], *steps])
    parts = [part for value in weight.inputs for part in constant(value)]
    real = ir.node("DequantizeLinear", parts, dict(weight.attributes))
    for added in (down, up, real):
        added.outputs[0].name = names.fresh("rounded")
    copy.graph.insert_before(node, [down, up, real])
    node.replace_input_with(0, up.outputs[0])
    node.replace_input_with(1, real.outputs[0])
    return copy


def _dequantizer(node: ir.Node, index: int) -> ir.Node | None:
    value = node.inputs[index]
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def errors_at_layers(
    work: ir.Model,
    made: ir.Model,
    layers: Sequence[Layer],
    feeds: Sequence[Feeds],
    threads: int,
) -> dict[str, float]:
    """Return by layer how far its output in the finished model is from that in float, in decibels.

    That is what has gathered up to there: of this layer, and of all before it. Layers that have become
    another node are left out.

    Raises:
        RuntimeFailure: a model can't be run.
    """
    theirs = {str(node.name): node for node in made.graph}
    pairs = {
        layer.name: (layer.output, str(theirs[layer.name].outputs[0].name))
        for layer in layers
        if layer.name in theirs and theirs[layer.name].op_type == layer.op_type
    }
    found = {}
    for part in _in_parts(list(pairs), _TAPS):
        expected = _tap(work, [pairs[name][0] for name in part], feeds, threads)
        got = _tap(made, [pairs[name][1] for name in part], feeds, threads)
        for name in part:
            found[name] = _decibels(expected[pairs[name][0]], got[pairs[name][1]])
    return found


def _decibels(
    expected: Sequence[npt.NDArray[np.floating]], found: Sequence[npt.NDArray[np.floating]]
) -> float:
    noise = signal = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        if ours.shape != theirs.shape:
            return 0.0
        noise += float(np.square(theirs.astype(np.float64) - ours).sum())
        signal += float(np.square(ours.astype(np.float64)).sum())
    return sqnr_db(noise / signal) if signal > 0 else sqnr_db(float(noise > 0))


def _tap(
    model: ir.Model, names: Sequence[str], feeds: Sequence[Feeds], threads: int
) -> dict[str, list[npt.NDArray[Any]]]:
    session, outputs = open_taps(model, names, threads)
    kept: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for given in feeds:
        needed = {name: array for name, array in given.items() if name in session.inputs}
        results = session.run(needed)
        for name in names:
            kept[name].append(results[outputs[name]])
    return kept


def _in_parts(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]
