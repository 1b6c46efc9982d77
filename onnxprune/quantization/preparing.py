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
def fold_batch_norms(model: ir.Model) -> int:
    """Make each BatchNormalization behind a Conv, ConvTranspose or Gemm part of it; return how many.

    ``W' = W * gamma / std`` for each output channel, ``b' = (b - mean) * gamma / std + beta``.
    """
    names = Names(model.graph)
    folded = 0
    for node in list(model.graph):
        if node.op_type == "BatchNormalization" and _fold_batch_norm(model.graph, node, names):
            folded += 1
    return folded
def _fold_batch_norm(graph: ir.Graph, node: ir.Node, names: Names) -> bool:
    x = node.inputs[0]
    layer = None if x is None else x.producer()
    if x is None or layer is None or len(x.uses()) != 1 or x.is_graph_output() or len(node.outputs) > 1:
        return False
    if (
        layer.op_type not in ("Conv", "ConvTranspose", "Gemm")
        or node.attributes.get_int("training_mode", 0) == 1
    ):
    if layer.op_type == "ConvTranspose" and layer.attributes.get_int("group", 1) != 1:
    if layer.attributes.get_float("beta", 1.0) != 1.0 or layer.attributes.get_float("alpha", 1.0) != 1.0:
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    if weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
    if bias is not None and stored_tensor(bias) is None:
    parts = _statistics(node)
    kernel = tensor_of(weight).numpy()
    if parts is None or kernel.dtype not in (np.float32, np.float64):
    gamma, beta, mean, variance = parts
    factor = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    old = np.zeros_like(mean) if bias is None else tensor_of(bias).numpy().astype(np.float64).reshape(-1)
    axis = output_axis(layer)
    if old.size != factor.size or kernel.shape[axis] != factor.size:
    along = [1] * kernel.ndim
    along[axis] = -1
    put_numbers(weight, (kernel * factor.reshape(along)).astype(kernel.dtype))
    new = ((old - mean) * factor + beta).astype(kernel.dtype)
    name = names.fresh(f"{layer.name}.bias") if bias is None else names.fresh(str(bias.name))
    set_bias(graph, layer, new, name)
    node.outputs[0].replace_all_uses_with(x, replace_graph_outputs=False)
    _hand_on_name(graph, node, layer)
    graph.remove(node, safe=False)
    return True
def _hand_on_name(graph: ir.Graph, node: ir.Node, layer: ir.Node) -> None:
    """Let the result of a layer stand for that of the node behind it, under the name of the latter."""
    result, name = layer.outputs[0], node.outputs[0].name
    for place, output in enumerate(graph.outputs):
        if output is node.outputs[0]:
            graph.outputs[place] = result
            result.type, result.shape = output.type, output.shape
    node.outputs[0].name = None
    result.name = name
def set_bias(graph: ir.Graph, layer: ir.Node, bias: npt.NDArray[np.generic], name: str) -> None:
    """Give a layer another bias, of its own."""
    value = add_constant(graph, ir.Tensor(bias, name=name), name)
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    layer.replace_input_with(2, value)
def output_axis(layer: ir.Node) -> int:
    """Return the axis of a layer's weight that its outputs go along."""
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "Gemm":
        return 0 if layer.attributes.get_int("transB", 0) else 1
    return 1 if layer.op_type == "ConvTranspose" else -1
def _statistics(node: ir.Node) -> Sequence[npt.NDArray[np.float64]] | None:
    tensors = [None if value is None else stored_tensor(value) for value in node.inputs[1:5]]
    if len(tensors) < 4 or any(tensor is None for tensor in tensors):
        return None
    return [tensor.numpy().astype(np.float64) for tensor in tensors if tensor is not None]


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
