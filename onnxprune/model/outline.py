"""A graph -> what stands where in it, without the weights."""

from __future__ import annotations

import hashlib

import onnx_ir as ir

from onnxprune.model.digest import describe_attribute, describe_tensor
from onnxprune.outlines import Outline, OutlinedNode, OutlinedTensor, OutlinedValue

#: Attributes that take more than this to write down (the trees of a forest) are told apart by a hash.
_LONGEST_TEXT = 400


def outline_of(graph: ir.Graph) -> Outline:
    """Return what stands where in a graph whose nodes and values have names of their own.

    `onnxprune.model.prepare.written_out` and `prepare` give such graphs. Documentation and metadata are left
    out, and so are tensors that nothing reads.
    """
    return Outline(
        inputs=tuple(_interface(value) for value in graph.inputs if not value.is_initializer()),
        outputs=tuple(_interface(value) for value in graph.outputs),
        nodes=tuple(_node(node) for node in graph),
        tensors={
            str(value.name): _tensor(value.const_value)
            for value in graph.initializers.values()
            if value.const_value is not None and (value.uses() or value.is_graph_output())
        },
    )


def _interface(value: ir.Value) -> OutlinedValue:
    shape = (
        None if value.shape is None else tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    )
    return OutlinedValue(str(value.name), str(value.type), shape)


def _tensor(tensor: ir.TensorProtocol) -> OutlinedTensor:
    described = describe_tensor(tensor)
    contents = None if len(described) == 2 else tuple(tensor.numpy().reshape(-1).tolist())
    return OutlinedTensor(tensor.dtype.name.lower(), tuple(tensor.shape.numpy()), contents)


def _node(node: ir.Node) -> OutlinedNode:
    domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
    bodies: dict[str, tuple[Outline, ...]] = {}
    attributes: dict[str, str] = {}
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type == ir.AttributeType.GRAPH and not attribute.is_ref():
            bodies[name] = (outline_of(attribute.as_graph()),)
        elif attribute.type == ir.AttributeType.GRAPHS and not attribute.is_ref():
            bodies[name] = tuple(outline_of(graph) for graph in attribute.as_graphs())
        else:
            attributes[name] = _text(attribute)
    inputs = [None if value is None else str(value.name) for value in node.inputs]
    outputs = [str(value.name) if value.name else None for value in node.outputs]
    for names in (inputs, outputs):
        while names and names[-1] is None:
            names.pop()  # naming nothing at the end says nothing
    overload = f":{node.overload}" if node.overload else ""
    return OutlinedNode(
        str(node.name),
        f"{domain}{node.op_type}{overload}",
        tuple(inputs),
        tuple(outputs),
        attributes,
        bodies,
    )


def _text(attribute: ir.Attr) -> str:
    plain = attribute.type not in (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)
    text = repr(attribute.value) if plain and not attribute.is_ref() else repr(describe_attribute(attribute))
    if len(text) <= _LONGEST_TEXT:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{text[:60]}... (sha256 {digest[:16]})"
