"""What each layer of a pruned model should produce, and in which order the layers are repaired.

A layer aims at what the original produces, and where only things are added to its result that do not depend
on it, at the sum: then it makes up for the errors of the shortcut, too. Of several layers that meet in a sum
the deepest one comes last, when the others are settled, and aims at the sum alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.biases import is_fixed, numbers_of
from onnxprune.model.nodes import reads_of
from onnxprune.ops.linear import Linear

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

#: A channel that is scaled by less than this share of the largest scale can't be corrected through it.
_NO_SCALE = 1e-6


@dataclass(frozen=True, slots=True)
class Step:
    """One node on the way from the result of a layer to the value that is compared.

    Attributes:
        before: name of the value in front of the node.
        after: name of the value behind it.
        factor: what it multiplies with, in the axes of both; None for 1.
        order: of the axes behind it, None if it turns none.
        reshapes: it lays the numbers out anew.
        other: what it adds, None for nothing or a constant.
    """

    before: str
    after: str
    factor: Array | None = None
    order: tuple[int, ...] | None = None
    reshapes: bool = False
    other: ir.Value | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Where a layer of the pruned model is compared with the original.

    Attributes:
        value: name of the value, in both models.
        steps: from the result of the layer to it.
        level: layers of one level do not depend on each other; lower ones come first.
    """

    value: str
    steps: tuple[Step, ...]
    level: int

    @property
    def shaped(self) -> list[str]:
        """Names of the values whose shapes `back` needs."""
        return [step.before for step in self.steps if step.reshapes]

    def forward(self, ones: Array, shapes: Shapes) -> Array:
        """Return what becomes of a change of the result, at the value that is compared.

        Args:
            ones: the change, in the shape of the layer's result.
            shapes: of all values behind steps.
        """
        for step in self.steps:
            ones = _through(ones, step, shapes)
        return ones

    def back(self, change: Array, shapes: Shapes, *, scaled: bool = True) -> Array:
        """Return which change of the layer's result makes a change of the value that is compared.

        Args:
            change: at the value that is compared.
            shapes: of the values in `shaped`.
            scaled: divide by the factors on the way; what is multiplied with about 0 is 0.
        """
        for step in reversed(self.steps):
            if step.factor is not None and scaled:
                large = np.abs(step.factor) > _NO_SCALE * np.abs(step.factor).max(initial=0)
                inverse = np.divide(1, step.factor, out=np.zeros_like(step.factor), where=large)
                change = change * inverse.astype(change.dtype)
            if step.order is not None:
                change = change.transpose(np.argsort(step.order))
            if step.reshapes:
                change = change.reshape(shapes[step.before])
        return change


def _through(change: Array, step: Step, shapes: Shapes) -> Array:
    if step.factor is not None:
        change = change * step.factor.astype(change.dtype)
    if step.order is not None:
        change = change.transpose(step.order)
    return change.reshape(shapes[step.after]) if step.reshapes else change


def values_ahead(linears: Sequence[Linear]) -> list[str]:
    """Return the names of all values whose shapes `find_targets` asks for."""
    names = [str(value.name) for linear in linears for value in (linear.x, linear.node.outputs[0])]
    return names + [str(node.outputs[0].name) for linear in linears for node, _ in _behind(linear.node)]


def find_targets(
    graph: ir.Graph,
    linears: Sequence[Linear],
    shapes: Shapes,
    original: Collection[str],
    *,
    sums: bool = True,
) -> list[Target | None]:
    """Say for each layer what it aims at.

    Args:
        graph: of the pruned model, sorted.
        linears: its layers.
        shapes: of the `values_ahead`, for some samples.
        original: names of the values that the original has.
        sums: follow results into sums with other computed values.

    Returns:
        A target for each layer; None where the original has no value to compare with.
    """
    upstream = _upstream(graph, linears)
    above = [upstream.get(linear.x, 0) for linear in linears]
    depths: list[int] = []
    for number in range(len(linears)):
        depths.append(1 + max((depths[m] for m in _members(above[number])), default=0))
    place = {n: p for p, n in enumerate(sorted(range(len(linears)), key=lambda n: (depths[n], n)))}
    targets: list[Target | None] = [None] * len(linears)
    levels = [0] * len(linears)
    for number in place:
        linear = linears[number]
        allowed = _allowed(linear, shapes)
        steps: list[Step] = []
        best: tuple[Step, ...] | None = () if linear.node.outputs[0].name in original else None
        needs = used = above[number]
        for step in allowed:
            added = 0 if step.other is None else upstream.get(step.other, 0)
            if (step.other is not None and not sums) or any(
                place[m] >= place[number] for m in _members(added)
            ):
                break
            needs |= added
            steps.append(step)
            moves = step.order is not None or step.reshapes
            if not moves and step.after in original:
                best, used = tuple(steps), needs
        levels[number] = 1 + max((levels[m] for m in _members(used)), default=0)
        if best is not None:
            value = best[-1].after if best else str(linear.node.outputs[0].name)
            targets[number] = Target(value, best, levels[number])
    return targets


def _allowed(linear: Linear, shapes: Shapes) -> list[Step]:
    """Return the steps behind a layer, as far as a change of its result can be followed."""
    allowed: list[Step] = []
    for node, index in _behind(linear.node):
        step = _step(node, index, shapes)
        if step is None:
            break
        before, after = shapes[step.before], shapes[step.after]
        if step.order is None and not step.reshapes and before != after:
            break
        trial = Target(step.after, (*allowed, step), 0)
        if step.factor is not None and gains(linear, trial, shapes) is None:
            break
        allowed.append(step)
    return allowed


def gains(linear: Linear, target: Target, shapes: Shapes) -> npt.NDArray[np.float64] | None:
    """Return what each output of a layer is multiplied with on the way to its target.

    Args:
        linear: the layer.
        target: of it.
        shapes: of its result and of the values on the way.

    Returns:
        float64 ``[groups, outputs]``; None if places of one output are multiplied differently.
    """
    if all(step.factor is None for step in target.steps):
        return np.ones((linear.groups, linear.outputs))
    ones = np.ones(shapes[str(linear.node.outputs[0].name)])
    scaled = target.back(target.forward(ones, shapes), shapes, scaled=False)
    rows = linear.targets(scaled)
    first = rows[:, :1]
    return np.array(first[:, 0]) if np.allclose(rows, first, rtol=1e-6, atol=0) else None


# --- what is behind a layer ---------------------------------------------------------------------------------


#: Operators that a change of an input goes through without a change of its kind.
_FOLLOWED = frozenset(
    ("Add", "BatchNormalization", "Div", "Dropout", "Flatten", "Identity", "Mul", "Reshape", "Squeeze", "Sub",
     "Transpose", "Unsqueeze")
)  # fmt: skip


def _behind(node: ir.Node) -> list[tuple[ir.Node, int]]:
    """Return the nodes behind one, with the input that leads there, as long as each is the only reader."""
    found = []
    value = node.outputs[0]
    while len(value.uses()) == 1 and not value.is_graph_output():
        (use,) = value.uses()
        known = use.node.domain in ("", "ai.onnx") and use.node.op_type in _FOLLOWED
        if not known or use.node.graph is not node.graph:
            break
        found.append((use.node, use.idx))
        value = use.node.outputs[0]
    return found


def _step(node: ir.Node, index: int, shapes: Shapes) -> Step | None:
    """Return what a node does to an input, None if a change can't be followed through it."""
    value = node.inputs[index]
    if value is None:
        return None
    before, after = str(value.name), str(node.outputs[0].name)
    rank = len(shapes[before])
    if node.op_type in ("Identity", "Dropout") and index == 0:
        return Step(before, after)
    if node.op_type == "Transpose":
        order = node.attributes.get_ints("perm", list(reversed(range(rank))))
        return Step(before, after, order=tuple(order))
    if node.op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze") and index == 0:
        return Step(before, after, reshapes=True)
    if node.op_type == "BatchNormalization" and index == 0:
        return _normalized(node, before, after, rank)
    if node.op_type in ("Add", "Sub", "Mul", "Div") and len(node.inputs) == 2:
        return _combined(node, index, before, after)
    return None


def _normalized(node: ir.Node, before: str, after: str, rank: int) -> Step | None:
    """``y = scale * (x - mean) / sqrt(var + epsilon) + bias``, by channel along axis 1."""
    scale, variance = node.inputs[1], node.inputs[4]
    if node.attributes.get_int("training_mode", 0) or scale is None or variance is None:
        return None
    if not is_fixed(scale) or not is_fixed(variance):
        return None
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    factor = numbers_of(scale) / np.sqrt(numbers_of(variance) + epsilon)
    return Step(before, after, factor=factor.reshape(-1, *(1,) * (rank - 2)))


def _combined(node: ir.Node, index: int, before: str, after: str) -> Step | None:
    other = node.inputs[1 - index]
    if other is None:
        return None
    fixed = is_fixed(other)
    if node.op_type == "Add":
        return Step(before, after, other=None if fixed else other)
    if node.op_type == "Sub":
        sign = None if index == 0 else np.array(-1.0)
        return Step(before, after, factor=sign, other=None if fixed else other)
    if not fixed or (node.op_type == "Div" and index == 1):
        return None
    factor = numbers_of(other)
    if node.op_type == "Div":
        factor = np.divide(1, factor, out=np.full_like(factor, np.inf), where=factor != 0)
    return Step(before, after, factor=factor) if np.isfinite(factor).all() else None


def _upstream(graph: ir.Graph, linears: Sequence[Linear]) -> dict[ir.Value, int]:
    """Return for each value the layers that it depends on, bit by bit."""
    numbers = {linear.node: number for number, linear in enumerate(linears)}
    found: dict[ir.Value, int] = {}
    for node in graph:
        bits = 0
        for value in reads_of(node):
            bits |= found.get(value, 0)
        if node in numbers:
            bits |= 1 << numbers[node]
        if bits:
            found.update(dict.fromkeys(node.outputs, bits))
    return found


def _members(bits: int) -> list[int]:
    return [place for place, bit in enumerate(reversed(f"{bits:b}")) if bit == "1"]
