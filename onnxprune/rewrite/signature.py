"""What a part is after a cut, told without cutting it: its operators, their attributes, and all sizes.

Two parts with one signature are the same model but for the contents of their weights, whatever models they
come from; what was measured of one holds for the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxprune.ops.channels import Channels, Use
from onnxprune.ops.kept import Kept
from onnxprune.parts import Part
from onnxprune.rewrite.cut import fix_sizes
from onnxprune.types import BoolArray, IntArray

#: Contents of integer tensors up to this size are sizes, axes and bounds; of other types, up to the second:
#: exponents, limits and factors that decide which nodes a runtime fuses.
_INTEGERS = 64
_NUMBERS = 4


class Signer:
    """Signatures of one part at any cut.

    Args:
        part: a part of an analysed graph.
        channels: the labels of the graph.
        types: element types of its inputs by name.
        contents: of small inputs that hold integers, by name.
        marked: names of inputs and outputs that are to be told from others.
    """

    def __init__(
        self,
        part: Part,
        channels: Channels,
        *,
        types: Mapping[str, ir.DataType],
        contents: Mapping[str, np.ndarray[Any, Any]],
        marked: Collection[str] = (),
    ) -> None:
        self._part = part
        self._channels = channels
        numbers: dict[ir.Value, str] = {}
        for value in part.inputs:
            name = str(value.name)
            content = contents.get(name)
            known = "" if content is None or content.size > _INTEGERS else _digest(content)
            numbers[value] = f"{types.get(name)} {name in marked} {known}"
        self._inputs = list(numbers.items())
        for number, value in enumerate(part.inputs):
            numbers[value] = f"i{number}"
        self._nodes = [_fixed_text(node, number, numbers) for number, node in enumerate(part.nodes)]
        self._end = " ".join(f"{numbers[value]} {value.name in marked}" for value in part.outputs)
        graph = part.nodes[0].graph
        domains = {node.domain for node in part.nodes}
        opsets = {} if graph is None else graph.opset_imports
        self._opsets = repr(sorted((domain, opsets.get(domain)) for domain in domains))

    def sign(self, removed: BoolArray) -> str:
        """Return the sha256, in hexadecimal, of all that tells the part without some labels from others.

        Args:
            removed: bool ``[labels.count]``, True for each label that goes.
        """
        kept = _Noting(self._channels, removed)
        for node in self._part.nodes:
            fix_sizes(node, kept)
        lines = [self._opsets]
        lines += [f"{text} {self._shape(value, kept)}" for value, text in self._inputs]
        for node, text in zip(self._part.nodes, self._nodes, strict=True):
            sizes = [self._shape(Use(node, i), kept) for i in _constants(node)]
            sizes += [self._shape(value, kept) for value in node.outputs]
            lines.append(f"{text} {sizes} {kept.notes.get(node, '')}")
        lines.append(self._end)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _shape(self, ref: ir.Value | Use, kept: Kept) -> tuple[int, ...] | None:
        value = ref.value if isinstance(ref, Use) else ref
        return None if self._channels.shapes.shape(value) is None else kept.shape(ref)


class _Noting(Kept):
    """What is left after a cut; what the rules would write is noted only."""

    def __init__(self, channels: Channels, removed: BoolArray) -> None:
        super().__init__(channels, removed)
        self.notes: dict[ir.Node, list[object]] = {}

    def _note(self, node: ir.Node, *what: object) -> None:
        self.notes.setdefault(node, []).append(what)

    def set_attribute(self, node: ir.Node, attribute: ir.Attr) -> None:
        self._note(node, attribute.name, attribute.value)

    def drop_attribute(self, node: ir.Node, name: str) -> None:
        self._note(node, name)

    def set_ints(self, node: ir.Node, index: int, numbers: Sequence[int] | IntArray) -> None:
        self._note(node, index, [int(number) for number in np.ravel(numbers)])

    def become_gather(self, node: ir.Node, axis: int, places: IntArray) -> None:
        self._note(node, "becomes Gather", axis)

    def gather_before(self, node: ir.Node, axis: int, places: IntArray) -> None:
        self._note(node, "Gather before", axis)


def _constants(node: ir.Node) -> list[int]:
    return [i for i, value in enumerate(node.inputs) if value is not None and value.is_initializer()]


def _fixed_text(node: ir.Node, number: int, numbers: dict[ir.Value, str]) -> str:
    """Return what no cut changes of a node; number its constants and outputs."""
    read = []
    for value in node.inputs:
        if value is None:
            read.append("-")
        elif value in numbers:
            read.append(numbers[value])
        else:
            numbers[value] = f"w{len(numbers)}"
            read.append(f"{numbers[value]} {_constant_text(value)}")
    for place, value in enumerate(node.outputs):
        numbers[value] = f"n{number}.{place}{'' if value.name else ' absent'}"
    attributes = sorted((name, _attribute_text(attribute)) for name, attribute in node.attributes.items())
    return f"{node.domain}:{node.op_type} {read} {len(node.outputs)} {attributes}"


def _constant_text(value: ir.Value) -> str:
    tensor = value.const_value
    if tensor is None:
        return "unknown"
    limit = _INTEGERS if tensor.dtype.is_integer() else _NUMBERS
    return f"{tensor.dtype} {_digest(tensor.numpy()) if tensor.size <= limit else ''}"


def _attribute_text(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {_digest(tensor.numpy())}"
    return repr(attribute.value)


def _digest(array: np.ndarray[Any, Any]) -> str:
    digest = hashlib.sha256(repr((array.shape, str(array.dtype))).encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
