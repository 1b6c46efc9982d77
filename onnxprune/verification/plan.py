"""Does a file hold what its plan declares: zeros in place, sizes as planned, the rest untouched?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.digest import structure_digest
from onnxprune.model.stored import all_nodes, consumer_name, stored_tensor, stored_values, tensor_of
from onnxprune.model.streaming import read_pieces
from onnxprune.ops.weights import FoundWeight
from onnxprune.patterns import Pattern, count_bad_blocks, count_bad_runs
from onnxprune.types import BoolArray, Check, Mask, Plan
from onnxprune.verification.zeros import nonzero


class Declared:
    """What a plan declares of weights, compared with a file while its weights are read for other checks."""

    def __init__(self, masks: Mapping[str, Mask], pattern: Pattern) -> None:
        self._masks, self._pattern = masks, pattern
        #: (stored value, consumer's place) -> what is wrong with the pattern there; (value, None): with zeros
        self.known: dict[tuple[ir.Value, tuple[ir.Node, int] | None], str | None] = {}

    def __call__(self, weight: FoundWeight, kept: BoolArray) -> None:
        """Compare one weight, of which it is known where it is not zero."""
        mask = self._masks.get(weight.use.tensor)
        if mask is None or weight.shape != mask.shape:
            return
        if weight.zero_point is None and (weight.stored, None) not in self.known:
            self.known[weight.stored, None] = _why_not_zero(weight.use.tensor, kept, mask)
        if self._pattern.kind == "N:M":
            place = weight.node, weight.index
            self.known[weight.stored, place] = _why_no_pattern(weight, mask, self._pattern, kept)


def check_declared_zeros(model: ir.Model, masks: Mapping[str, Mask], seen: Declared | None = None) -> Check:
    """Check that every position that a mask drops is zero in the file.

    Args:
        model: as in the file.
        masks: what is declared.
        seen: what is known already.
    """
    values = stored_values(model)
    declared = 0
    for name, mask in masks.items():
        problem = _why_not_masked(name, mask, values.get(name, []), seen)
        if problem is not None:
            return Check("declared zeros", False, problem)
        declared += mask.size - mask.kept
    return Check("declared zeros", True, f"all {declared} zeros of {len(masks)} tensors are there")


def _why_not_masked(name: str, mask: Mask, values: Sequence[ir.Value], seen: Declared | None) -> str | None:
    if len(values) != 1:
        return f"{name!r} is masked by the plan; the file has {len(values) or 'no'} tensor of that name"
    tensor = tensor_of(values[0])
    shape = tuple(int(size) for size in tensor.shape.numpy())
    if shape != mask.shape:
        return f"{name!r} has shape {list(shape)}, the plan's mask {list(mask.shape)}"
    if seen is not None and (values[0], None) in seen.known:
        return seen.known[values[0], None]
    return _why_not_zero(name, nonzero(tensor), mask)


def _why_not_zero(name: str, kept: BoolArray, mask: Mask) -> str | None:
    broken = np.packbits(kept) & ~mask.bits
    count = Mask(mask.shape, broken).kept
    if not count:
        return None
    first = int(np.argmax(broken != 0)) * 8
    flat = first + int(np.argmax(np.unpackbits(broken[first // 8 :][:1])))
    index = [int(position) for position in np.unravel_index(flat, mask.shape)]
    return f"{name!r}: {count} weights that the plan makes zero are not, the first at {index}"


def check_pattern(
    weights: Sequence[FoundWeight],
    masks: Mapping[str, Mask],
    pattern: Pattern,
    seen: Declared | None = None,
) -> Check:
    """Check the pattern along the axes that the consumers in this file sum over, whatever the plan holds."""
    by_tensor: dict[str, list[FoundWeight]] = {}
    for weight in weights:
        by_tensor.setdefault(weight.use.tensor, []).append(weight)
    for name, mask in masks.items():
        if name not in by_tensor:
            return Check(f"pattern {pattern}", False, f"{name!r}: no consumer that sums over it was found")
        for weight in by_tensor[name]:
            place = weight.stored, (weight.node, weight.index)
            if seen is not None and place in seen.known:
                problem = seen.known[place]
            else:
                problem = _why_no_pattern(weight, mask, pattern)
            if problem is not None:
                return Check(
                    f"pattern {pattern}", False, f"{name!r}, used by {weight.use.consumer}: {problem}"
                )
    return Check(
        f"pattern {pattern}", True, f"holds in {len(masks)} tensors along the axis that is summed over"
    )


def _why_no_pattern(
    weight: FoundWeight, mask: Mask, pattern: Pattern, kept: BoolArray | None = None
) -> str | None:
    axis, output_axis = weight.use.summed_axis, weight.use.output_axis
    if pattern.kind == "N:M":
        if weight.summed_length % pattern.run:
            return f"each output sums over {weight.summed_length} weights, not a multiple of {pattern.run}"
        kept = nonzero(weight.tensor, weight.zero_point) if kept is None else kept
        runs = kept.size // pattern.run
        bad = count_bad_runs(kept, pattern, axis, weight.groups)
        return f"{bad} of {runs} runs along axis {axis} keep more than {pattern.keep}" if bad else None
    if weight.shape != mask.shape:
        return f"its shape is {list(weight.shape)}, the mask's {list(mask.shape)}"
    bad = count_bad_blocks(mask.unpack(), pattern, output_axis, axis)
    return (
        f"{bad} blocks of axes {output_axis} and {axis} are neither kept nor dropped whole" if bad else None
    )


def check_same_graph(model: ir.Model, original: ir.Model | None, plan: Plan | None) -> Check:
    """Check that nothing but weights was changed: the same nodes read the same values.

    Without the original, the digest in the plan is compared, which does not see names.
    """
    name = "graph unchanged"
    if original is not None:
        for before, after in zip(all_nodes(original), all_nodes(model), strict=False):
            old, new = _reads(before), _reads(after)
            if old != new:
                return Check(name, False, f"{consumer_name(after)} is {new}; in the original it is {old}")
    expected = structure_digest(original) if original is not None else plan and plan.structure_digest
    if expected and structure_digest(model) != expected:
        where = "the original" if original is not None else "the model that the plan was made for"
        return Check(name, False, f"operators, attributes or shapes are not those of {where}")
    return Check(name, True, f"{sum(1 for _ in all_nodes(model))} nodes are as they were")


def check_repaired_graph(model: ir.Model, original: ir.Model) -> Check:
    """Check that a repair changed nothing of the graph but biases, which it may have added or made its own.

    An Add of a constant that the original does not have may stand behind a node; a node may read a stored
    bias where it read none or another one.
    """
    name = "graph unchanged"
    known = set(stored_values(original))
    added = 0
    nodes = iter(all_nodes(model))
    for before in all_nodes(original):
        after = next(nodes, None)
        while after is not None and not _same_but_biases(before, after) and _adds_constant(after, known):
            after, added = next(nodes, None), added + 1
        if after is None or not _same_but_biases(before, after):
            found = "the end of the graph" if after is None else _reads(after)
            return Check(name, False, f"{found} stands where the original has {_reads(before)}")
    for after in nodes:
        if not _adds_constant(after, known):
            return Check(name, False, f"{_reads(after)} is not in the original")
        added += 1
    detail = (
        f"{sum(1 for _ in all_nodes(original))} nodes are as they were, but for biases; {added} were added"
    )
    return Check(name, True, detail)


def _same_but_biases(before: ir.Node, after: ir.Node) -> bool:
    if before.op_identifier() != after.op_identifier() or _plain(before) != _plain(after):
        return False
    for old, new in zip_longest(before.inputs, after.inputs):
        same = (old and old.name) == (new and new.name)
        is_bias = new is not None and stored_tensor(new) is not None and (old is None or stored_tensor(old))
        if not same and not is_bias:
            return False
    return True


def _plain(node: ir.Node) -> dict[str, bytes]:
    """Return the attributes that hold no graphs, as they are stored."""
    return {
        name: ir.serde.serialize_attribute(attribute).SerializeToString(deterministic=True)
        for name, attribute in node.attributes.items()
        if attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR)
    }


def _adds_constant(node: ir.Node, known: Collection[str]) -> bool:
    stored = [str(v.name) for v in node.inputs if v is not None and stored_tensor(v) is not None]
    return node.op_type == "Add" and len(stored) == 1 and stored[0] not in known


def _reads(node: ir.Node) -> str:
    inputs = ", ".join("" if value is None else str(value.name) for value in node.inputs)
    return f"{node.op_type}({inputs})"


def check_untouched(
    model: ir.Model, original: ir.Model, masks: Mapping[str, Mask], *, rewritten: bool = False
) -> Check:
    """Check that every weight outside the masks has the bits it had in the original, tensor by tensor.

    Args:
        model: as in the file.
        original: what it was made from.
        masks: of the plan.
        rewritten: the plan's score gives masked tensors new weights; shape and type of these are compared
            alone, all others bit for bit.
    """
    before, after = stored_values(original), stored_values(model)
    compared = 0
    for name in masks:
        if name not in before:
            return Check(
                "other weights unchanged", False, f"{name!r} is masked, but the original has no such tensor"
            )
    for name, values in before.items():
        if len(values) != len(after.get(name, [])):
            continue  # folded or renamed on the way: nothing to compare it with
        for old, new in zip(values, after[name], strict=True):
            problem = other_form(tensor_of(old), tensor_of(new))
            if problem is None and not (rewritten and name in masks):
                problem = first_change(tensor_of(old), tensor_of(new), masks.get(name))
            if problem is not None:
                return Check("other weights unchanged", False, f"{name!r} {problem}")
            compared += 1
    left = sum(len(values) for values in before.values()) - compared
    note = f"; {left} were folded or renamed" if left else ""
    if rewritten:
        note = f"; {len(masks)} masked ones have new weights{note}"
        return Check("other weights unchanged", True, f"{compared - len(masks)} tensors are bit-equal{note}")
    return Check("other weights unchanged", True, f"{compared} tensors are bit-equal outside the masks{note}")


def check_form(model: ir.Model, original: ir.Model) -> Check:
    """Check that a repair, which may change all floats, left types, shapes and other numbers as they were.

    Args:
        model: as in the file.
        original: what it was made from.
    """
    name = "form of the weights"
    before, after = stored_values(original), stored_values(model)
    compared = equal = 0
    for tensor, values in before.items():
        if len(values) != len(after.get(tensor, [])):
            continue  # folded or renamed on the way: nothing to compare it with
        for old, new in zip(map(tensor_of, values), map(tensor_of, after[tensor]), strict=True):
            problem = other_form(old, new)
            if problem is None and not old.dtype.is_floating_point():
                problem = first_change(old, new, None)
                equal += 1
            if problem is not None:
                return Check(name, False, f"{tensor!r} {problem}")
            compared += 1
    detail = f"{compared} tensors have their types and shapes, {equal} of other numbers are bit-equal"
    return Check(name, True, f"{detail}; a repair changed floats")


def other_form(old: ir.TensorProtocol, new: ir.TensorProtocol) -> str | None:
    """Say how types or shapes differ, None if they don't."""
    if old.dtype != new.dtype or tuple(old.shape.numpy()) != tuple(new.shape.numpy()):
        return (
            f"was {old.dtype.name.lower()} {list(old.shape.numpy())}, "
            f"is {new.dtype.name.lower()} {list(new.shape.numpy())}"
        )
    return None


def first_change(old: ir.TensorProtocol, new: ir.TensorProtocol, mask: Mask | None) -> str | None:
    """Say where two tensors of one form first differ in a bit (where a mask keeps), None if they don't."""
    start, kept = 0, None if mask is None else mask.bits
    for ours, theirs in zip(read_pieces(new), read_pieces(old), strict=True):
        changed = _bits(ours) != _bits(theirs)
        if kept is not None:
            bits = kept[start // 8 : (start + ours.size + 7) // 8]  # pieces begin at whole bytes
            changed &= np.unpackbits(bits, count=ours.size).view(np.bool_)
        if changed.any():
            flat = start + int(np.argmax(changed))
            index = [int(position) for position in np.unravel_index(flat, tuple(old.shape.numpy()))]
            return (
                f"was changed outside its mask at {index}" if mask is not None else f"was changed at {index}"
            )
        start += ours.size
    return None


def _bits(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """Return an array whose equality is that of the bits: NaN equals itself, -0 is not 0."""
    if array.dtype.kind == "O" or array.dtype.itemsize not in (1, 2, 4, 8):
        return array
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


def check_shapes(model: ir.Model, plan: Plan) -> Check:
    """Check that every axis that the plan cuts has the planned length."""
    name = "planned shapes"
    nodes = {consumer_name(node): node for node in model.graph.all_nodes()}
    planned = _planned_lengths(plan)
    for (tensor, consumer), lengths in planned.items():
        node = nodes.get(consumer)
        shapes = [] if node is None else list(_shapes_read(node, tensor))
        if not shapes:
            return Check(name, False, f"{tensor!r}: the file has no node {consumer!r} that reads it")
        if not any(_wrong_axis(shape, lengths) is None for shape in shapes):
            axis = _wrong_axis(shapes[0], lengths)
            wanted = lengths.get(axis or 0)
            detail = (
                f"{tensor!r}, read by {consumer}: {list(shapes[0])}, but axis {axis} should have {wanted}"
            )
            return Check(name, False, detail)
    cut = sum(group.removed.size for group in plan.groups)
    return Check(name, True, f"{len(planned)} tensors have their planned shapes; {cut} channels are gone")


def _planned_lengths(plan: Plan) -> dict[tuple[str, str], dict[int, int]]:
    """Return by tensor and consumer the length of each axis after the cut; groups may share an axis."""
    removed: dict[tuple[str, str, int], set[int]] = {}
    lengths: dict[tuple[str, str], dict[int, int]] = {}
    for group in plan.groups:
        for member in group.members:
            gone = removed.setdefault((member.tensor, member.consumer, member.axis), set())
            gone.update(member.removed.tolist())
            axes = lengths.setdefault((member.tensor, member.consumer), {})
            axes[member.axis] = member.size - len(gone)
    return lengths


def _wrong_axis(shape: tuple[int, ...], lengths: Mapping[int, int]) -> int | None:
    """Return the first axis that is missing or has not its planned length."""
    return next((a for a, n in lengths.items() if a >= len(shape) or shape[a] != n), None)


def _shapes_read(node: ir.Node, tensor: str) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of the tensors that a node reads under a name, or as an unshared copy of it."""
    for value in node.inputs:
        stored = None if value is None else stored_tensor(value)
        if value is None or stored is None:
            continue
        name = str(value.name)
        suffix = name.removeprefix(f"{tensor}_")
        if name == tensor or (suffix != name and suffix.isdigit()):
            yield tuple(int(size) for size in stored.shape.numpy())


def check_branches(model: ir.Model, plan: Plan) -> Check:
    """Check that the branches that the plan removes are gone with their weights, and the others are there.

    One branch may stand inside another (an encoder inside the only cross-attention that reads it): what goes
    with the inner one is not missed in the outer one.
    """
    name = "planned layers"
    there = {str(output.name) for node in model.graph for output in node.outputs} | stored_values(
        model
    ).keys()
    branches = [
        (branch, number in group.removed)
        for group in plan.groups
        for number, branch in enumerate(group.branches)
    ]
    gone = {entry for branch, removed in branches if removed for entry in (branch.value, *branch.weights)}
    for branch, removed in branches:
        for entry in (branch.value, *branch.weights):
            if removed and entry in there:
                return Check(name, False, f"{branch.name} should be gone, but the file has its {entry!r}")
            if entry not in there and entry not in gone:
                return Check(name, False, f"{branch.name} should be there, but the file has no {entry!r}")
    count = sum(removed for _, removed in branches)
    return Check(name, True, f"{count} of {len(branches)} residual branches are gone, the others are there")
