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

#: Integer tensors up to this size are sizes, axes and bounds: their contents count. Of other types single
#: numbers do: exponents, limits and factors decide which nodes a runtime fuses.
_INTEGERS = 64
_NUMBERS = 1


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
        numbers = {value: f"i{number}" for number, value in enumerate(part.inputs)}
        self._inputs = [
            (value, _input_text(value, channels, types, contents, str(value.name) in marked))
            for value in part.inputs
        ]
        self._nodes = [_Told(node, number, numbers) for number, node in enumerate(part.nodes)]
        self._end = " ".join(f"{numbers[value]} {value.name in marked}" for value in part.outputs)
        graph = part.nodes[0].graph
        opsets = {} if graph is None else graph.opset_imports
        self._start = repr(sorted((domain, opsets.get(domain)) for domain in {n.domain for n in part.nodes}))

    def sign(self, removed: BoolArray) -> str:
        """Return the sha256, in hexadecimal, of all that tells the part without some labels from others.

        Args:
            removed: bool ``[labels.count]``, True for each label that goes.
        """
        kept = _Noting(self._channels, removed)
        for node in self._part.nodes:
            fix_sizes(node, kept)
        lines = [self._start]
        lines += [f"{text} {self._shape(value, kept)}" for value, text in self._inputs]
        for node, told in zip(self._part.nodes, self._nodes, strict=True):
            sizes = [self._shape(Use(node, index), kept) for index in told.constants]
            sizes += [self._shape(value, kept) for value in node.outputs]
            lines.append(f"{told.text(kept.notes.get(node, {}))} {sizes}")
        lines.append(self._end)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _shape(self, ref: ir.Value | Use, kept: Kept) -> tuple[int, ...] | None:
        value = ref.value if isinstance(ref, Use) else ref
        return None if self._channels.shapes.shape(value) is None else kept.shape(ref)


class _Noting(Kept):
    """What is left after a cut; what the rules would write is noted by node, attributes by name."""

    def __init__(self, channels: Channels, removed: BoolArray) -> None:
        super().__init__(channels, removed)
        self.notes: dict[ir.Node, dict[str, str]] = {}

    def _note(self, node: ir.Node, what: str, text: str) -> None:
        self.notes.setdefault(node, {})[what] = text

    def set_attribute(self, node: ir.Node, attribute: ir.Attr) -> None:
        """Note a new value."""
        self._note(node, attribute.name, _attribute_text(attribute))

    def drop_attribute(self, node: ir.Node, name: str) -> None:
        """Note that one goes."""
        self._note(node, name, "")

    def set_ints(self, node: ir.Node, index: int, numbers: Sequence[int] | IntArray) -> None:
        """Note new contents of an input."""
        self._note(node, _place(index), str([int(number) for number in np.ravel(numbers)]))

    def become_gather(self, node: ir.Node, axis: int, places: IntArray) -> None:
        """Note it; which places are picked takes no time."""
        self._note(node, "becomes Gather", str(axis))

    def gather_before(self, node: ir.Node, axis: int, places: IntArray) -> None:
        """Note it."""
        self._note(node, f"Gather before {axis}", "")


class _Told:
    """What no cut changes of a node, but for what its rule rewrites.

    Args:
        node: of the part.
        number: its place there.
        numbers: how values are called, by value; its constants and outputs are added.

    Attributes:
        constants: which of its inputs are.
    """

    def __init__(self, node: ir.Node, number: int, numbers: dict[ir.Value, str]) -> None:
        self.constants = tuple(
            index for index, value in enumerate(node.inputs) if value is not None and value.is_initializer()
        )
        read = []
        self._facts: dict[str, str] = {}
        for index, value in enumerate(node.inputs):
            if value is not None and value not in numbers:
                numbers[value] = f"w{len(numbers)}"
            read.append("-" if value is None else numbers[value])
            if index in self.constants:
                self._facts[_place(index)] = _constant_text(value)
        for place, value in enumerate(node.outputs):
            numbers[value] = f"n{number}.{place}"
        given = "".join("1" if value.name else "0" for value in node.outputs)
        self._head = f"{node.domain}:{node.op_type} {' '.join(read)} {given}"
        for name, attribute in node.attributes.items():
            self._facts[name] = _attribute_text(attribute)

    def text(self, notes: Mapping[str, str]) -> str:
        """Return all of it, with what the rule rewrote in place of what was there."""
        facts = {**self._facts, **notes} if notes else self._facts
        return f"{self._head} {sorted(fact for fact in facts.items() if fact[1])}"


def _place(index: int) -> str:
    return f"input {index}"


def _input_text(
    value: ir.Value,
    channels: Channels,
    types: Mapping[str, ir.DataType],
    contents: Mapping[str, np.ndarray[Any, Any]],
    marked: bool,
) -> str:
    name = str(value.name)
    fixed = [dim.is_constant for dim in channels.shapes.dims.get(value, ())]
    content = contents.get(name)
    known = "" if content is None or content.size > _INTEGERS else _digest(content)
    return f"{types.get(name)} {fixed} {marked} {known}"


def _constant_text(value: ir.Value | None) -> str:
    tensor = None if value is None else value.const_value
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
