"""Nodes that multiply a stored weight with a computed input, as ``y = W x + b``: one algebra for all of them.

Scores of second order and repair by least squares work on a matrix and the rows that it is multiplied with.
Here convolutions, matrix products and their fused forms get both, wherever the file keeps the weight and
however its axes are turned on the way. What can't be brought to this form is listed with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.stored import consumer_name
from onnxprune.ops.constant_views import computed_constants, view_of, way_to
from onnxprune.ops.unfold import (
    Convolution,
    Form,
    MatrixAxes,
    Product,
    Recurrence,
    TransposedConvolution,
)
from onnxprune.ops.weights import FoundWeight, usable_weights
from onnxprune.ops.windows import Windows
from onnxprune.types import Skipped

Array = npt.NDArray[Any]

#: The type of matrices of weights in other types: enough for all but float64.
_WORKING = np.float32


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """One node that computes ``y = W x (+ b)`` with a stored weight of floats and a computed input.

    With ``W = matrix(weight)``: ``targets(y) == rows(x) @ W^T (+ b)``. Column ``channel * taps + tap`` of a
    matrix belongs to a channel of the input and a tap of the kernel. Rows are in order of the samples, then
    of the places, as the result has them.

    Attributes:
        found: the weight, and where it is stored.
        operand: which input of the node is x.
        groups: separate products: blocks of a grouped convolution, matrices of a stack.
        outputs: rows of the matrix of one group.
        inputs: columns of the matrix of one group.
        taps: columns for each channel of the input.
        bias: which input of the node is b, None if the operator takes none; b may be absent all the same.
        bias_scale: what the node multiplies b with (``beta`` of a Gemm).
        tail: what the node does with y before it gives it away, None if it gives y: with a tail, there are no
            targets.
    """

    found: FoundWeight
    operand: int
    groups: int
    outputs: int
    inputs: int
    taps: int
    bias: int | None
    bias_scale: float
    tail: str | None
    _form: Form
    _layout: tuple[_Step, ...]
    _scale: float

    @property
    def node(self) -> ir.Node:
        """The node."""
        return self.found.node

    @property
    def x(self) -> ir.Value:
        """The computed input."""
        value = self.node.inputs[self.operand]
        if value is None:
            raise ValueError(f"{self.node.name!r} lost its input {self.operand}")
        return value

    def matrix(self, stored: Array) -> Array:
        """Return a weight, stored as the file stores this one, as matrices.

        Args:
            stored: ``[found.shape]``; floats, or truth values (a mask), which are moved alone.

        Returns:
            ``[groups, outputs, inputs]``: float64 for float64, bool for bool, else float32; the ``alpha`` of
            a Gemm is part of it.
        """
        if stored.shape != self.found.shape:
            raise ValueError(f"the stored weight has shape {self.found.shape}, not {stored.shape}")
        scaled = stored.dtype != np.bool_
        seen = stored.astype(_WORKING) if scaled and stored.dtype != np.float64 else stored
        for step in self._layout:
            seen = step.forward(seen)
        matrix = self._form.matrix(seen)
        return matrix * matrix.dtype.type(self._scale) if scaled and self._scale != 1 else matrix

    def stored_like(self, matrix: Array) -> Array:
        """Return matrices ``[groups, outputs, inputs]`` as the file stores the weight: `matrix` backwards.

        Returns:
            ``[found.shape]``, of the stored type (bool for bool).
        """
        if matrix.shape != (self.groups, self.outputs, self.inputs):
            raise ValueError(f"expected {(self.groups, self.outputs, self.inputs)}, not {matrix.shape}")
        scaled = matrix.dtype != np.bool_
        seen = self._form.weight(
            matrix / matrix.dtype.type(self._scale) if scaled and self._scale != 1 else matrix
        )
        for step in reversed(self._layout):
            seen = step.backward(seen)
        stored = self.found.tensor.dtype.numpy() if scaled else np.bool_
        return np.ascontiguousarray(seen.reshape(self.found.shape), stored)

    @property
    def row_key(self) -> Hashable:
        """What is equal for nodes that make the same rows of the same input, as query, key and value do."""
        return self.x, self._form.row_key()

    @property
    def stored_key(self) -> Hashable | None:
        """What is equal for weights that are moved alike by `matrix`; None where that is not known."""
        if self._layout:
            return None
        node, use = self.node, self.found.use
        attributes = tuple(
            sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        )
        sizes = (tuple(self.found.shape), self.groups, self.outputs, self.inputs, self.taps)
        axes = (self.found.index, self.found.groups, use.summed_axis, use.output_axis)
        return node.domain, node.op_type, attributes, sizes, axes

    def windows(self, x: Array) -> Windows:
        """Return all rows of an input as a view, of which `Windows.rows` copies some."""
        return self._form.windows(x)

    def copied_elements(self, shape: Sequence[int]) -> int:
        """Return how many numbers `windows` copies for an input of this shape, all the same."""
        return self._form.copied_elements(shape)

    def rows(self, x: Array) -> npt.NDArray[np.float32]:
        """Return an input as the rows that the matrix is multiplied with.

        Args:
            x: the input, as the node takes it.

        Returns:
            float32 ``[groups, rows, inputs]``.
        """
        return self._form.windows(x).rows()

    def targets(self, y: Array) -> Array:
        """Return the result of the node as ``[groups, rows, outputs]``, in the order of `rows`.

        Raises:
            ValueError: the node has a ``tail``, so its result is not linear in x.
        """
        if self.tail is not None:
            raise ValueError(f"no targets at {consumer_name(self.node)}: {self.tail}")
        return self._form.targets(y)


def find_linear(model: ir.Model) -> tuple[list[Linear], list[Skipped]]:
    """Return every linear node in the order of the nodes, and the weights that are in none, with the reason.

    A tied tensor has one entry for each use. Only nodes of the main graph count: inputs of others can't be
    watched.
    """
    constants = computed_constants(model)
    found, skipped = usable_weights(model)
    linears = []
    for weight in found:
        try:
            linears.append(_linear(model, weight, constants))
        except _NotLinear as reason:
            used = f"used by {weight.use.op_type} {weight.use.consumer}: {reason}"
            skipped.append(Skipped(weight.use.tensor, used))
    return linears, list(dict.fromkeys(skipped))


class _NotLinear(Exception):
    """A weight can't be brought to the form; the message is the reason. Never leaves this module."""


def _linear(model: ir.Model, weight: FoundWeight, constants: set[ir.Value]) -> Linear:
    node = weight.node
    if weight.quantized or not weight.tensor.dtype.is_floating_point():
        raise _NotLinear("it is quantized, or stored as integers")
    if weight.tensor.dtype.bitwidth < 16:
        raise _NotLinear(f"it is stored as {weight.tensor.dtype.name}")
    if 0 in weight.shape:
        raise _NotLinear("it is empty")
    if node.graph is not model.graph:
        raise _NotLinear("it is in a body or a function, whose values can't be watched")
    make = _SPELLINGS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))
    if make is None:
        raise _NotLinear(f"the products of {node.op_type} have no rows of their own")
    spelling = make(weight)
    x = node.inputs[spelling.operand]
    if x is None or x in constants or x.is_initializer():
        raise _NotLinear("what it is multiplied with is constant too")
    value = node.inputs[weight.index]
    if value is None:
        raise ValueError(f"{node.name!r} lost its weight")
    layout = tuple(_layout(value))
    shape = _seen_shape(value)
    groups, outputs, inputs = spelling.form.matrix(np.broadcast_to(np.False_, shape)).shape
    return Linear(
        weight, spelling.operand, groups, outputs, inputs, spelling.taps, spelling.bias, spelling.bias_scale,
        spelling.tail, spelling.form, layout, spelling.scale,
    )  # fmt: skip


# --- how a stored tensor reaches its node -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """One node on the way that moves axes: a Transpose (``order``), or anything that only reshapes.

    Attributes:
        before: shape in front of it.
        after: shape behind it.
        order: of the axes, None for a reshape.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    order: tuple[int, ...] | None

    def forward(self, array: Array) -> Array:
        return array.reshape(self.after) if self.order is None else array.transpose(self.order)

    def backward(self, array: Array) -> Array:
        return array.reshape(self.before) if self.order is None else array.transpose(np.argsort(self.order))


def _layout(value: ir.Value) -> Iterator[_Step]:
    """Yield what happens to the axes between the stored tensor and ``value``."""
    source, nodes = way_to(value)
    before = _seen_shape(source)
    for node in reversed(nodes):
        after = _seen_shape(node.outputs[0])
        if node.op_type == "Transpose":
            default = tuple(reversed(range(len(before))))
            yield _Step(before, after, tuple(node.attributes.get_ints("perm", default)))
        elif after != before:
            yield _Step(before, after, None)
        before = after


def _seen_shape(value: ir.Value) -> tuple[int, ...]:
    view = view_of(value)
    if view is None:
        raise ValueError(f"{value.name!r} is not made from a stored tensor")
    return view.shape


# --- spellings ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Spelling:
    """What an operator says about the fields of a `Linear`."""

    form: Form
    operand: int = 0
    taps: int = 1
    bias: int | None = None
    bias_scale: float = 1.0
    tail: str | None = None
    scale: float = 1.0


def _weight_shape(weight: FoundWeight) -> tuple[int, ...]:
    value = weight.node.inputs[weight.index]
    return () if value is None else _seen_shape(value)


def _convolution(weight: FoundWeight) -> _Spelling:
    node, kernel = weight.node, _weight_shape(weight)[2:]
    groups = node.attributes.get_int("group", 1)
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    form = Convolution(groups, kernel, *_geometry(node, len(kernel)), auto_pad)
    return _Spelling(form, taps=math.prod(kernel), bias=2, tail=_tail(node))


def _transposed_convolution(weight: FoundWeight) -> _Spelling:
    node, kernel = weight.node, _weight_shape(weight)[2:]
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if "output_shape" in node.attributes or auto_pad not in ("NOTSET", "VALID"):
        raise _NotLinear("its padding follows from the size of its result")
    rank = len(kernel)
    strides, dilations, pads = _geometry(node, rank)
    more = tuple(node.attributes.get_ints("output_padding", [0] * rank))
    pads = pads if auto_pad == "NOTSET" else (0,) * 2 * rank
    groups = node.attributes.get_int("group", 1)
    form = TransposedConvolution(groups, kernel, strides, dilations, pads, more)
    return _Spelling(form, taps=math.prod(kernel), bias=2)


def _geometry(node: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return strides, dilations and pads."""
    strides = node.attributes.get_ints("strides", [1] * rank)
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    pads = node.attributes.get_ints("pads", [0] * 2 * rank)
    return tuple(strides), tuple(dilations), tuple(pads)


def _tail(node: ir.Node) -> str | None:
    """Return what a fused node does with its sum."""
    activation = node.attributes.get_string("activation", "")
    if activation:
        return f"its result has gone through {activation}"
    if node.op_type == "FusedConv" and len(node.inputs) > 3 and node.inputs[3] is not None:
        return "its result has another value added"
    return None


def _product(weight: FoundWeight) -> _Spelling:
    node = weight.node
    fused = node.op_type != "MatMul"

    def axes(operand: int) -> MatrixAxes:
        name = "AB"[operand]
        turned, behind = (
            fused and node.attributes.get_int(f"{what}{name}", 0) != 0 for what in ("trans", "transBatch")
        )
        return MatrixAxes(turned, behind)

    scale = node.attributes.get_float("alpha", 1.0) if fused else 1.0
    return _Spelling(_product_form(weight, axes), operand=1 - weight.index, scale=_checked(scale))


def _general_product(weight: FoundWeight) -> _Spelling:
    node = weight.node

    def axes(operand: int) -> MatrixAxes:
        return MatrixAxes(turned=node.attributes.get_int(f"trans{'AB'[operand]}", 0) != 0)

    return _Spelling(
        _product_form(weight, axes),
        operand=1 - weight.index,
        bias=2,
        bias_scale=node.attributes.get_float("beta", 1.0),
        tail=_tail(node),
        scale=_checked(node.attributes.get_float("alpha", 1.0)),
    )


def _product_form(weight: FoundWeight, axes: Callable[[int], MatrixAxes]) -> Product:
    if weight.index not in (0, 1):
        raise _NotLinear(f"it is input {weight.index} of a product")
    return Product(weight.index == 1, _weight_shape(weight), axes(weight.index), axes(1 - weight.index))


def _checked(scale: float) -> float:
    if scale == 0 or not math.isfinite(scale):
        raise _NotLinear(f"its products are multiplied by {scale}")
    return scale


def _projection(weight: FoundWeight) -> _Spelling:
    """Queries, keys and values of a fused attention: ``x [..., inputs]`` times ``w [inputs, outputs]``."""
    return _Spelling(
        Product(True, _weight_shape(weight)),
        bias=2,
        tail="its queries, keys and values go on into the attention",
    )


def _recurrence(weight: FoundWeight) -> _Spelling:
    if weight.index != 1:
        raise _NotLinear("it is multiplied with the state inside the node, which can't be watched")
    form = Recurrence(_weight_shape(weight)[0])
    return _Spelling(form, tail="its gates go on into the recurrence")


_CONTRIB = "com.microsoft"
_SPELLINGS: dict[tuple[str, str], Callable[[FoundWeight], _Spelling]] = {
    ("", "Conv"): _convolution,
    ("", "ConvTranspose"): _transposed_convolution,
    ("", "GRU"): _recurrence,
    ("", "Gemm"): _general_product,
    ("", "LSTM"): _recurrence,
    ("", "MatMul"): _product,
    ("", "RNN"): _recurrence,
    (_CONTRIB, "Attention"): _projection,
    (_CONTRIB, "FusedConv"): _convolution,
    (_CONTRIB, "FusedGemm"): _general_product,
    (_CONTRIB, "FusedMatMul"): _product,
    (_CONTRIB, "TransposeMatMul"): _product,
}
