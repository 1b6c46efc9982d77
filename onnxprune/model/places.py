"""Every place of a model that stores a tensor: initializers, attributes, in subgraphs and functions too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnxprune.model.nodes import graphs_in

Body: TypeAlias = "ir.Graph | ir.Function"


def bodies(model: ir.Model) -> Iterator[Body]:
    """Yield the main graph, then the functions, each followed by the subgraphs within it. No recursion."""
    firsts: list[Body] = [model.graph, *model.functions.values()]
    for first in firsts:
        waiting = [first]
        while waiting:
            body = waiting.pop()
            yield body
            inner = [graph for node in body for graph in graphs_in(node)]
            if isinstance(body, ir.Function):
                inner += graphs_in(body)
            waiting.extend(reversed(inner))


def graph_protos(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """Yield the graphs of a proto in the order in which ``bodies`` yields those of the model made from it."""
    for first in (model.graph, *model.functions):
        waiting: list[onnx.GraphProto | onnx.FunctionProto] = [first]
        while waiting:
            body = waiting.pop()
            attributes = [attribute for node in body.node for attribute in node.attribute]
            if isinstance(body, onnx.GraphProto):
                yield body
            else:
                attributes += body.attribute_proto
            inner: list[onnx.GraphProto] = []
            for attribute in attributes:
                if attribute.type == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
                    inner.append(attribute.g)
                elif attribute.type == onnx.AttributeProto.GRAPHS:
                    inner.extend(attribute.graphs)
            waiting.extend(reversed(inner))


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor is stored.

    Attributes:
        body: the graph or function around it.
        owner: the initialized value, or the node (or function, for a default) that has the attribute.
        attribute: name of the attribute, None for an initializer.
        index: position in the attribute, None if it holds a single tensor.
        tensor: what was stored there when the place was found.
    """

    body: Body
    owner: ir.Value | ir.Node | ir.Function
    attribute: str | None
    index: int | None
    tensor: ir.TensorProtocol

    @property
    def name(self) -> str:
        """The name of the initializer, or of the first output of the node with the attribute."""
        if isinstance(self.owner, ir.Value):
            return str(self.owner.name)
        outputs = self.owner.outputs
        first = str(outputs[0].name) if outputs else ""
        if isinstance(self.owner, ir.Node) and self.owner.op_type == "Constant" and self.attribute == "value":
            return first
        return f"{first}:{self.attribute}" + ("" if self.index is None else f"[{self.index}]")

    def put(self, tensor: ir.TensorProtocol) -> None:
        """Store another tensor there."""
        if isinstance(self.owner, ir.Value):
            self.owner.const_value = tensor
            return
        old = self.owner.attributes[str(self.attribute)]
        if self.index is None:
            new = ir.AttrTensor(old.name, tensor, doc_string=old.doc_string)
        else:
            tensors = list(old.as_tensors())
            tensors[self.index] = tensor
            new = ir.AttrTensors(old.name, tensors, doc_string=old.doc_string)
        self.owner.attributes[old.name] = new


def places(model: ir.Model) -> Iterator[Place]:
    """Yield every place with a tensor: per body, initializers in order, then attributes in node order.

    Placing other tensors while iterating is allowed; adding or removing nodes is not.
    """
    for body in bodies(model):
        if isinstance(body, ir.Function):
            yield from _in_attributes(body, body)
        else:
            for value in body.initializers.values():
                if value.const_value is not None:
                    yield Place(body, value, None, None, value.const_value)
        for node in body:
            if node.attributes:
                yield from _in_attributes(body, node)


def _in_attributes(body: Body, owner: ir.Node | ir.Function) -> Iterator[Place]:
    for name, attribute in list(owner.attributes.items()):
        if attribute.is_ref() or attribute.value is None:
            continue
        if attribute.type == ir.AttributeType.TENSOR:
            yield Place(body, owner, name, None, attribute.as_tensor())
        elif attribute.type == ir.AttributeType.TENSORS:
            for index, tensor in enumerate(attribute.as_tensors()):
                yield Place(body, owner, name, index, tensor)
