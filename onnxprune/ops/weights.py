"""Every weight that is multiplied and summed, wherever a file keeps it, with the axes of the stored tensor.

The rules say which inputs of a node are weights and which axis is summed over; here those inputs are followed
back to the stored tensor: an initializer or a ``Constant`` node, behind Identity, Transpose, Reshape, Cast or
DequantizeLinear, in the graph, in bodies of If, Loop and Scan (captured values of outer graphs too) and in
functions. What is constant but can't be followed is reported with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.model.stored import all_nodes, consumer_name, stored_tensor, stored_values, tensor_of
from onnxprune.ops.base import WeightInput
from onnxprune.ops.constant_views import (
    ConstantView,
    NotFollowed,
    ZeroPoint,
    computed_constants,
    passes_through,
    view_of,
    way_to,
)
from onnxprune.ops.lowered import lowered_weights
from onnxprune.ops.registry import rule_for
from onnxprune.ops.transforms import fixed_transforms
from onnxprune.types import Skipped, WeightUse


@dataclass(frozen=True, slots=True)
class FoundWeight:
    """A weight use together with the parts of the graph that it was found in.

    Attributes:
        use: names and axes.
        node: the consumer.
        index: which input of the consumer.
        stored: the value that holds the stored tensor.
        shape: shape of the stored tensor.
        groups: separate sums that the summed axis is divided into (more than 1: a grouped ConvTranspose).
        quantized: the stored numbers are not the weights: they have a scale, and perhaps a zero point.
        zero_point: what stands for zero, None for 0.
    """

    use: WeightUse
    node: ir.Node
    index: int
    stored: ir.Value
    shape: tuple[int, ...]
    groups: int
    quantized: bool
    zero_point: ZeroPoint | None

    @property
    def summed_length(self) -> int:
        """Number of weights in one sum along the summed axis."""
        return self.shape[self.use.summed_axis] // self.groups

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The stored tensor."""
        return tensor_of(self.stored)


def find_weights(model: ir.Model) -> tuple[list[WeightUse], list[Skipped]]:
    """Return every use of a weight in the order of the nodes, and the constants that could not be followed.

    A tied tensor has one entry for each use. Masks find their tensors by name; so a name that stands for
    several tensors (in the two branches of an If, say) is skipped.
    """
    found, skipped = usable_weights(model)
    return [weight.use for weight in found], skipped


def usable_weights(model: ir.Model) -> tuple[list[FoundWeight], list[Skipped]]:
    """As `find_weights`, with the nodes and values themselves."""
    found, skipped = locate_weights(model)
    transforms = fixed_transforms(all_nodes(model), model.graph.inputs)
    shared_names = {name for name, values in stored_values(model).items() if len(values) > 1}
    usable = []
    for weight in found:
        what = transforms.get((weight.node, weight.index))
        if what is not None:
            skipped.append(Skipped(weight.use.tensor, f"it is left alone: it looks like {what}"))
        elif weight.use.tensor in shared_names:
            skipped.append(
                Skipped(weight.use.tensor, "several tensors have this name; rename those in subgraphs")
            )
        else:
            usable.append(weight)
    return usable, list(dict.fromkeys(skipped))


def locate_weights(model: ir.Model) -> tuple[list[FoundWeight], list[Skipped]]:
    """As `find_weights`, with the nodes and values themselves, and without regard to equal names."""
    search = _Search(model)
    for node in all_nodes(model):
        search.visit(node)
    return search.found, search.skipped


def other_readers(stored: ir.Value, found: Sequence[FoundWeight]) -> list[str]:
    """Return what else reads a stored tensor besides ``found``: nodes by operator and name, outputs."""
    known = {(weight.node, weight.index) for weight in found if weight.stored is stored}
    readers, waiting, seen = [], [stored], {stored}
    while waiting:
        value = waiting.pop()
        if value.is_graph_output():
            readers.append(f"the graph output {value.name}")
        for node, index in value.uses():
            if index == 0 and passes_through(node):
                waiting.extend(output for output in node.outputs if output not in seen)
                seen.update(node.outputs)
            elif (node, index) not in known and node.op_type not in ("Shape", "Size"):
                readers.append(f"{node.op_type} {consumer_name(node)}")
    return readers


#: Nodes that hold bodies: what enters them is looked for inside.
_BODIES = ("If", "Loop", "Scan")


class _Search:
    """One walk over all nodes."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.constants = computed_constants(model)
        self.body_inputs = dict(_body_inputs(model))
        self.found: list[FoundWeight] = []
        self.skipped: list[Skipped] = []
        self._views: dict[ir.Value, ConstantView | NotFollowed | None] = {}

    def visit(self, node: ir.Node) -> None:
        rule = rule_for(node)
        known = () if rule is None else rule.weight_inputs(node, self.rank_of)
        for weight in known:
            self._visit_input(node, weight, weight.zero_point)
        lowered = () if known else lowered_weights(node)
        for weight, zero_index in lowered:
            self._visit_input(node, weight, zero_index)
        if rule is None and not lowered and not passes_through(node) and node.op_type not in _BODIES:
            self._report_unknown(node)

    def _view_of(self, value: ir.Value) -> ConstantView | None:
        """As `view_of`, looked up once for all that read a value."""
        if value not in self._views:
            try:
                self._views[value] = view_of(value)
            except NotFollowed as reason:
                self._views[value] = reason
        found = self._views[value]
        if isinstance(found, NotFollowed):
            raise found
        return found

    def rank_of(self, value: ir.Value) -> int:
        """Return the rank of a value; 0 if it is not known, so that it does not count as a matrix."""
        try:
            view = self._view_of(value)
        except NotFollowed:
            view = None
        if view is not None:
            return len(view.shape)
        if value.shape is not None:
            return len(value.shape)
        return 2 if value in self.constants or value in self.body_inputs else 0

    def _visit_input(self, node: ir.Node, weight: WeightInput, zero_index: int | None) -> None:
        value = node.inputs[weight.index] if weight.index < len(node.inputs) else None
        if value is None:
            return
        try:
            found = self._follow(node, value, weight, zero_index)
        except NotFollowed as reason:
            source, _ = way_to(value)
            self.skipped.append(
                Skipped(str(source.name), f"used by {node.op_type} {consumer_name(node)}: {reason}")
            )
            return
        if found is not None:
            self.found.append(found)

    def _follow(
        self, node: ir.Node, value: ir.Value, weight: WeightInput, zero_index: int | None
    ) -> FoundWeight | None:
        view = self._view_of(value)
        if view is None:
            self._raise_if_constant(value)
            return None
        if max(weight.summed_axis, weight.output_axis) >= len(view.axes):
            raise NotFollowed(f"its rank is {len(view.axes)}")
        summed_axis, output_axis = view.axes[weight.summed_axis], view.axes[weight.output_axis]
        if summed_axis is None or output_axis is None:
            which = "that is summed over" if summed_axis is None else "of the outputs"
            raise NotFollowed(f"the axis {which} is not an axis of the stored tensor: a Reshape made it")
        zero_point = view.zero_point
        if zero_index is not None:
            zero_point = _zero_point_of(node, zero_index, weight, view)
        use = WeightUse(str(view.stored.name), consumer_name(node), node.op_type, summed_axis, output_axis)
        stored = self._view_of(view.stored) or view  # with the axes that the tensor is stored with
        transposed = node.op_type == "ConvTranspose"
        groups = node.attributes.get_int("group", 1) if transposed and weight.summed_axis == 0 else 1
        quantized = view.quantized or zero_index is not None
        return FoundWeight(
            use, node, weight.index, view.stored, stored.shape, max(groups, 1), quantized, zero_point
        )

    def _raise_if_constant(self, value: ir.Value) -> None:
        """Raise if a value that is not followed is constant all the same.

        Raises:
            NotFollowed: with the reason.
        """
        source, _ = way_to(value)
        producer = source.producer()
        if source in self.constants and producer is not None:
            made_by = f"{producer.op_type} {consumer_name(producer)}"
            raise NotFollowed(f"it is computed by {made_by} from constants; fold constants first")
        outer = self.body_inputs.get(source)
        if outer is not None and (outer[1] in self.constants or view_of(outer[1]) is not None):
            raise NotFollowed(
                f"it enters the body of {outer[0].op_type} {consumer_name(outer[0])} as a state"
            )

    def _report_unknown(self, node: ir.Node) -> None:
        """Report the matrices that an operator without a rule reads: it may sum over them."""
        call = node.op_identifier() in self.model.functions
        why = "a function: inline functions first" if call else "an operator whose sums are not known"
        for value in node.inputs:
            if value is None:
                continue
            source, _ = way_to(value)
            tensor = stored_tensor(source)
            if tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) >= 2:
                reason = f"used by {node.op_type} {consumer_name(node)}, {why}"
                self.skipped.append(Skipped(str(source.name), reason))


def _zero_point_of(node: ir.Node, index: int, weight: WeightInput, view: ConstantView) -> ZeroPoint | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return None
    zero = view_of(value)
    if zero is None:
        raise NotFollowed("its zero point is computed at run time")
    if zero.shape in ((), (1,)):
        return ZeroPoint(zero.stored, None)
    return ZeroPoint(zero.stored, view.axes[weight.output_axis])


def _body_inputs(model: ir.Model) -> Iterator[tuple[ir.Value, tuple[ir.Node, ir.Value]]]:
    """Yield each input of a Loop or Scan body with the node and the outer value that enters there."""
    for node in all_nodes(model):
        if node.op_type not in ("Loop", "Scan") or "body" not in node.attributes:
            continue
        body = node.attributes["body"].as_graph()
        outer = node.inputs[max(0, len(node.inputs) - len(body.inputs)) :]  # Scan 8 has one more, in front
        for inner, value in zip(body.inputs, outer, strict=False):
            if value is not None:
                yield inner, (node, value)
