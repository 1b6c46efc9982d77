"""The same model in the form that quantization starts from.

Calls of functions are written out, every constant is an initializer, every node has a name, constant
subgraphs are computed, and a BatchNormalization behind a convolution is part of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.errors import ModelError
from onnxprune.messages import one_line
from onnxprune.model.names import add_constant
from onnxprune.model.prepare import written_out
from onnxprune.model.stored import stored_tensor
from onnxprune.ops.evaluate import evaluate
from onnxprune.quantization.folding import fold_affine, shorten_hard_swish

#: The first version of the standard operators with a scale for each channel.
LEAST_OPSET = 13

#: Results of constant subgraphs that are kept instead of them, in elements.
_LARGEST_CONSTANT = 1 << 16

_NEVER_FOLDED = ("DequantizeLinear", "QuantizeLinear", "RandomNormal", "RandomUniform", "Constant")


def prepared(model: ir.Model) -> ir.Model:
    """Return a copy that computes the same and is ready to be quantized; large tensors are shared.

    Raises:
        ModelError: its operators are of an old version, and can't be made new.
    """
    work = written_out(model)
    raise_opset(work)
    _fold_constants(work)
    fold_affine(work)
    shorten_hard_swish(work)
    passes.RemoveUnusedNodesPass()(work)
    return work


def opset_of(model: ir.Model) -> int:
    """Return the version of the standard operators."""
    versions = model.graph.opset_imports or model.opset_imports
    return int(versions.get("", versions.get("ai.onnx", 1)))


def raise_opset(model: ir.Model) -> None:
    """Give a model operators of at least `LEAST_OPSET`, in place.

    Raises:
        ModelError: they can't be made new.
    """
    if opset_of(model) >= LEAST_OPSET:
        return
    from onnx import version_converter

    try:
        proto = version_converter.convert_version(ir.to_proto(model), LEAST_OPSET)
    except Exception as error:  # noqa: BLE001 - it throws whatever its adapters meet
        raise ModelError(
            f"operators of version {opset_of(model)} can't be made those of {LEAST_OPSET}, which int8 needs "
            f"({one_line(error)}); export the model with opset {LEAST_OPSET} or later"
        ) from None
    before = model.clone()
    model.graph = ir.from_proto(proto).graph
    restore_interface(model, before)


def restore_interface(model: ir.Model, original: ir.Model) -> None:
    """Say again what a model takes and gives, and what was noted of it, where a tool has changed that."""
    for ours, theirs in ((model.graph.inputs, original.graph.inputs),
                         (model.graph.outputs, original.graph.outputs)):  # fmt: skip
        known = {value.name: value for value in theirs}
        for value in ours:
            if value.name in known:
                value.shape, value.type = known[value.name].shape, known[value.name].type
                value.doc_string = known[value.name].doc_string
    model.metadata_props.clear()
    model.metadata_props.update(original.metadata_props)
    model.graph.name, model.doc_string = original.graph.name, original.doc_string


def _fold_constants(model: ir.Model) -> None:
    """Compute nodes that read nothing but constants, where the result is small."""
    opset = opset_of(model)
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type in _NEVER_FOLDED or not node.inputs:
            continue
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            continue
        given = [None if value is None else stored_tensor(value) for value in node.inputs]
        missing = any(
            value is not None and tensor is None for value, tensor in zip(node.inputs, given, strict=True)
        )
        small = sum(tensor.size for tensor in given if tensor is not None) <= _LARGEST_CONSTANT
        if missing or not small or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
            continue
        _fold(model.graph, node, [None if tensor is None else tensor.numpy() for tensor in given], opset)


def _fold(graph: ir.Graph, node: ir.Node, arrays: list[npt.NDArray[np.generic] | None], opset: int) -> None:
    results = evaluate(node, arrays, opset)
    output = node.outputs[0]
    if results is None or results[0].size > _LARGEST_CONSTANT or results[0].dtype.kind not in "biuf":
        return
    if output.dtype is not None and results[0].dtype != output.dtype.numpy():
        return
    name = str(output.name)
    output.name = None
    value = add_constant(graph, ir.Tensor(results[0], name=name), name)
    output.replace_all_uses_with(value)
    graph.remove(node, safe=True)
