"""The outline of a plan's model on disk: ``graph.json``, one line for each node and stored tensor."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from onnxprune.outlines import Outline, OutlinedNode, OutlinedTensor, OutlinedValue
from onnxprune.plans.lines import in_lines

SCHEMA = 1

_Size = Annotated[int, Field(ge=0, lt=2**63)]

#: Of an input or output: exporters write -1 where they mean any size.
_Axis = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Name = str | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Value(_Strict):
    name: str
    type: str
    shape: list[_Axis | str] | None


class _Tensor(_Strict):
    dtype: str
    shape: list[_Size]
    contents: list[int] | None = None


class _Node(_Strict):
    name: str
    operator: str
    inputs: list[_Name]
    outputs: list[_Name]
    attributes: dict[str, str] = {}
    bodies: dict[str, list[_Graph]] = {}


class _Graph(_Strict):
    inputs: list[_Value]
    outputs: list[_Value]
    tensors: dict[str, _Tensor]
    nodes: list[_Node]


class GraphFile(_Graph):
    """What ``graph.json`` holds."""

    schema_number: int = Field(alias="schema")

    def outline(self) -> Outline:
        """Return the outline."""
        return _outline(self)


def _outline(graph: _Graph) -> Outline:
    return Outline(
        inputs=tuple(_value(value) for value in graph.inputs),
        outputs=tuple(_value(value) for value in graph.outputs),
        nodes=tuple(
            OutlinedNode(
                node.name, node.operator, tuple(node.inputs), tuple(node.outputs), node.attributes,
                {name: tuple(_outline(body) for body in bodies) for name, bodies in node.bodies.items()},
            )
            for node in graph.nodes
        ),
        tensors={
            name: OutlinedTensor(
                tensor.dtype, tuple(tensor.shape), None if tensor.contents is None else tuple(tensor.contents)
            )
            for name, tensor in graph.tensors.items()
        },
    )  # fmt: skip


def _value(value: _Value) -> OutlinedValue:
    return OutlinedValue(value.name, value.type, None if value.shape is None else tuple(value.shape))


def to_text(outline: Outline) -> str:
    """Return the contents of ``graph.json``."""
    return in_lines({"schema": SCHEMA, **_plain(outline)})


def _plain(outline: Outline) -> dict[str, Any]:
    return {
        "inputs": [_plain_value(value) for value in outline.inputs],
        "outputs": [_plain_value(value) for value in outline.outputs],
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
            | ({} if tensor.contents is None else {"contents": list(tensor.contents)})
            for name, tensor in outline.tensors.items()
        },
        "nodes": [_plain_node(node) for node in outline.nodes],
    }


def _plain_value(value: OutlinedValue) -> dict[str, Any]:
    shape = None if value.shape is None else list(value.shape)
    return {"name": value.name, "type": value.type, "shape": shape}


def _plain_node(node: OutlinedNode) -> dict[str, Any]:
    bodies = {name: [_plain(body) for body in graphs] for name, graphs in node.bodies.items()}
    found: dict[str, Any] = {
        "name": node.name, "operator": node.operator,
        "inputs": list(node.inputs), "outputs": list(node.outputs),
    }  # fmt: skip
    found |= {"attributes": dict(node.attributes)} if node.attributes else {}
    return found | ({"bodies": bodies} if bodies else {})
