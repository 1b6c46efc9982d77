"""A working copy in which sizes are constants: what analysis and cutting are done on.

The copy computes the same outputs from the same inputs. Constants are initializers, Identity nodes are gone,
statistics of constants are constants too, arithmetic on sizes is done where its result is the same for every
input, and the targets of Reshape and Expand say in numbers what they can. Calls of functions are written out,
every value of a body has a name of its own, the constants of bodies stand in the main graph, and so do the
nodes of an If that is always decided in the same way.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.model.body_shapes import branches, has_bodies, taken_branch
from onnxprune.model.constant_statistics import fold_statistics
from onnxprune.model.copies import copy_of
from onnxprune.model.dims import Array, Dim
from onnxprune.model.functions import without_functions
from onnxprune.model.joins import join_pieces, pick_before_joining
from onnxprune.model.names import Names, add_constant
from onnxprune.model.nodes import nodes_in
from onnxprune.model.scopes import (
    drop_identities,
    lift_constants,
    name_values_apart,
    number_nodes,
    return_copies,
)
from onnxprune.model.shapes import Shapes, concretise
from onnxprune.model.states import leave_out_zero_states

# The passes log every step at levels that belong to their own users.
logging.getLogger("onnx_ir").setLevel(logging.ERROR)


def prepare(
    model: ir.Model, input_shapes: Mapping[str, Sequence[int]] | None = None, *, in_place: bool = False
) -> tuple[ir.Model, Shapes]:
    """Return a working copy of a model and the sizes of all its values. Tensors are shared, not copied.

    Args:
        model: not changed, unless ``in_place``.
        input_shapes: concrete shapes by input name, for inputs with symbolic axes.
        in_place: nobody needs the model afterwards: it is changed, not copied.

    Raises:
        UsageError, ModelError: see `concretise`.
    """
    work = written_out(model, in_place=in_place)
    _unshare_dequantized(work.graph)
    join_pieces(work.graph)
    leave_out_zero_states(work.graph)
    fold_statistics(work.graph, (work.graph.opset_imports or work.opset_imports).get("", 1))
    shapes = concretise(work, input_shapes)
    _open_decided(work.graph, shapes)
    pick_before_joining(work.graph, shapes)
    _Sizes(work.graph, shapes).write()
    passes.RemoveUnusedNodesPass()(work)
    return work, shapes


def written_out(model: ir.Model, *, in_place: bool = False) -> ir.Model:
    """Return a copy without calls of functions, in which every constant is an initializer of the main graph.

    Its nodes and values have names of their own, and Identity nodes are gone. This is the first part of
    `prepare`: nothing is computed yet, so every stored tensor is there, and every value that depends on it.
    With ``in_place`` the model itself is changed.
    """
    plain = without_functions(model)
    work = plain if in_place else copy_of(plain)
    number_nodes(work)
    name_values_apart(work)
    name_nodes(work.graph)
    _drop_unnamed_constants(work.graph)
    _keep_constant_outputs(work.graph)
    return_copies(work)
    _lift_tensors(work.graph)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(work)
    lift_constants(work)
    drop_identities(work)
    return work


def name_nodes(graph: ir.Graph) -> None:
    """Give every node a name of its own: members of channel groups are told apart by their consumers."""
    taken = {node.name for node in nodes_in(graph) if node.name}
    seen: set[str] = set()
    for number, node in enumerate(nodes_in(graph)):
        if not node.name or node.name in seen:
            name = f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)
        seen.add(node.name)


def _drop_unnamed_constants(graph: ir.Graph) -> None:
    """Remove Constant nodes whose output has no name: nobody can read it, and no initializer can be made."""
    for node in list(nodes_in(graph)):
        if node.op_type == "Constant" and not any(output.name for output in node.outputs):
            _graph_of(node).remove(node, safe=True)


def _lift_tensors(graph: ir.Graph) -> None:
    """Turn Constant nodes that hold a tensor, in bodies too, into initializers of the main graph.

    The pass of onnx_ir does this too (and the rest), but checks a protocol at run time for each, which took a
    third of the analysis of a model with 2,600 constants.
    """
    for node in list(nodes_in(graph)):
        tensor = _tensor_of(node)
        if tensor is None:
            continue
        (output,) = node.outputs
        if output.is_graph_output():
            continue
        shape = ir.Shape(tensor.shape.numpy())
        value = ir.Value(name=output.name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.metadata_props.update(output.metadata_props)
        output.replace_all_uses_with(value)
        _graph_of(node).remove(node, safe=True)
        graph.register_initializer(value)


def _tensor_of(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the tensor, or the texts, that a Constant node holds; None for others, numbers among them.

    onnx_ir lifts texts too, if they are ASCII.
    """
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attributes) != 1:
        return None
    ((name, attribute),) = node.attributes.items()
    if name == "value":
        return attribute.as_tensor()
    if name == "value_string":
        return ir.StringTensor([_encoded(attribute.value)], shape=ir.Shape([]))
    if name == "value_strings":
        texts = [_encoded(text) for text in attribute.value]
        return ir.StringTensor(texts, shape=ir.Shape([len(texts)]))
    return None


def _encoded(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _keep_constant_outputs(graph: ir.Graph) -> None:
    """Put an Identity behind weights that are outputs as well, so that a cut never reaches an output."""
    for position, value in enumerate(graph.outputs):
        if value.is_initializer() and value.uses():
            copy = ir.Value(
                name=value.name, shape=value.shape, type=value.type, const_value=value.const_value
            )
            graph.initializers.pop(str(value.name))
            value.name = f"{copy.name}_weight"
            graph.initializers.add(value)
            graph.outputs[position] = copy
            graph.register_initializer(copy)


def _unshare_dequantized(graph: ir.Graph) -> None:
    """Give every user of a dequantized constant a DequantizeLinear of its own.

    So a constant that layers happen to share ties them no more than one that is not quantized.
    """
    names = Names(graph)
    for node in list(nodes_in(graph)):
        if node.op_type != "DequantizeLinear" or node.outputs[0].is_graph_output():
            continue
        if not all(value is None or value.is_initializer() for value in node.inputs):
            continue
        for user, index in list(node.outputs[0].uses())[1:]:
            copy = ir.node(
                node.op_type, node.inputs, dict(node.attributes), domain=node.domain, version=node.version
            )
            output, shared = copy.outputs[0], node.outputs[0]
            output.name = copy.name = names.fresh(str(shared.name))
            output.type, output.shape = shared.type, shared.shape
            _graph_of(node).insert_after(node, copy)
            user.replace_input_with(index, output)


def _open_decided(graph: ir.Graph, shapes: Shapes) -> None:
    """Put the nodes of a branch in the place of an If that takes it for every input."""
    for node in list(nodes_in(graph)):
        outer = node.graph
        if node.op_type != "If" or not has_bodies(node) or not node.inputs:
            continue  # without inputs: it stands in a branch that is never taken
        taken = taken_branch(node, shapes)
        if taken is None or outer is None:
            continue
        returned = list(taken.outputs)
        taken.outputs.clear()
        nodes = list(taken)
        taken.remove(nodes)
        outer.insert_before(node, nodes)
        for output, value in zip(node.outputs, returned, strict=True):
            if output.is_graph_output():
                copy = ir.node("Identity", [value], name=f"{node.name}_{output.name}")
                made = copy.outputs[0]
                made.name, made.type, made.shape = output.name, output.type, output.shape
                if output in shapes.dims:
                    shapes.dims[made] = shapes.dims[output]
                outer.insert_before(node, copy)
                value = made
            output.replace_all_uses_with(value, replace_graph_outputs=True)
        outer.remove(node, safe=True)
        for branch in branches(node):  # what is left in them reads values of the outer graph no more
            for left in list(branch.all_nodes()):
                left.resize_inputs(0)


class _Sizes:
    """Writes what is known of sizes into a graph and its bodies, in numbers that stand in the main graph."""

    def __init__(self, graph: ir.Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.shapes = shapes
        self.names = Names(graph)

    def write(self) -> None:
        for node in list(nodes_in(self.graph)):
            self._fold(node)
        for node in list(nodes_in(self.graph)):
            if node.op_type == "Reshape" and not node.domain:
                self._write_reshape_target(node)
            elif node.op_type == "Expand" and not node.domain:
                self._write_expand_target(node)
            elif node.op_type == "ConstantOfShape" and not node.domain:
                self._write_shape(node)

    def _constant(self, wanted: str, contents: Array) -> ir.Value:
        name = self.names.fresh(wanted)
        value = add_constant(self.graph, ir.Tensor(contents, name=name), name)
        self.shapes.add_constant(value, contents)
        return value

    def _fold(self, node: ir.Node) -> None:
        """Replace a value that is the same for every input, and small, by an initializer."""
        if len(node.outputs) != 1 or node.outputs[0].is_graph_output() or not node.outputs[0].uses():
            return
        contents = self.shapes.constant(node.outputs[0])
        if contents is not None:
            value = self._constant(f"{node.outputs[0].name}_folded", contents)
            node.outputs[0].replace_all_uses_with(value)
            _graph_of(node).remove(node, safe=True)

    def _write_reshape_target(self, node: ir.Node) -> None:
        """Write a computed target in numbers: constants, 0 for a kept axis, -1 for one more symbolic size.

        What is left is read from the input's own shape: ``Where(constant, sizes, Gather(Shape(x), axes))``.
        """
        source, target = node.inputs[:2]
        if source is None or target is None or target.is_initializer():
            return
        content = self.shapes.contents.get(target)
        if content is None or source not in self.shapes.dims:
            return
        given = self.shapes.dims[source]
        result = self.shapes.dims.get(node.outputs[0], ())
        entries = content.elements()
        if len(result) == len(entries):  # what -1 stands for is often known
            entries = [
                known if entry == Dim(-1) and (known.is_constant or known in given) else entry
                for entry, known in zip(entries, result, strict=True)
            ]
        literal_zero = node.attributes.get_int("allowzero", 0) == 1
        if literal_zero and any(dim.is_constant and dim.size == 0 for dim in entries):
            return
        sizes: list[int | None] = [
            dim.size if dim.is_constant else 0 if axis < len(given) and given[axis] == dim else None
            for axis, dim in enumerate(entries)
        ]
        labels = [dim.label for dim in given]
        missing = [axis for axis, size in enumerate(sizes) if size is None]
        copied = [axis for axis in missing if entries[axis].label in labels]
        free = [axis for axis in missing if axis not in copied]
        if not free and copied:
            free = [copied.pop()]
        if len(free) > 1 or (free and -1 in sizes):
            self._write_known(node, 1, entries, 0)
            return
        node.attributes.pop("allowzero", None)  # from here on, 0 means an axis that is kept
        for axis in free:
            sizes[axis] = -1
        numbers = np.array([0 if size is None else size for size in sizes], dtype=np.int64)
        constant = self._constant(f"{target.name}_sizes", numbers)
        if copied:
            axes = [labels.index(dim.label) if axis in copied else 0 for axis, dim in enumerate(entries)]
            known = [axis not in copied for axis in range(len(entries))]
            constant = self._read_from_shape(
                node, source, constant, np.array(axes, np.int64), np.array(known)
            )
        node.replace_input_with(1, constant)

    def _read_from_shape(
        self, node: ir.Node, source: ir.Value, sizes: ir.Value, axes: Array, known: Array
    ) -> ir.Value:
        """Insert nodes before ``node`` that read unknown entries of a target from the shape of ``source``."""
        whole = ir.node("Shape", [source])
        picked = ir.node("Gather", [whole.outputs[0], self._constant(f"{sizes.name}_axes", axes)])
        mask = self._constant(f"{sizes.name}_known", known)
        chosen = ir.node("Where", [mask, sizes, picked.outputs[0]])
        self._insert(
            node, [whole, picked, chosen], sizes, [len(self.shapes.dims[source]), len(axes), len(axes)]
        )
        return chosen.outputs[0]

    def _insert(
        self, before: ir.Node, nodes: Sequence[ir.Node], sizes: ir.Value, lengths: Sequence[int]
    ) -> None:
        """Insert nodes that compute sizes: int64 vectors of the given lengths."""
        for new, length in zip(nodes, lengths, strict=True):
            (output,) = new.outputs
            output.name = new.name = self.names.fresh(f"{sizes.name}_{new.op_type.lower()}")
            output.dtype = ir.DataType.INT64
            self.shapes.dims[output] = (Dim(length),)
        _graph_of(before).insert_before(before, nodes)

    def _write_expand_target(self, node: ir.Node) -> None:
        """Write 1 wherever an Expand repeats nothing, so that only the repeats are left as numbers.

        Repeats that depend on the input are still computed: ``Where(constant, sizes, computed)``.
        """
        source, target, output = *node.inputs[:2], node.outputs[0]
        known = self.shapes.dims
        if source is None or target is None or source not in known or output not in known:
            return
        given, result = known[source], known[output]
        shift = len(result) - len(given)
        sizes = [
            1 if axis >= shift and given[axis - shift] == dim else dim.size if dim.is_constant else None
            for axis, dim in enumerate(result)
        ]
        numbers = np.array([1 if size is None else size for size in sizes], np.int64)
        if None not in sizes:
            node.replace_input_with(1, self._constant(f"{output.name}_sizes", numbers))
            return
        if self.shapes.shape(target) == (len(sizes),):
            repeats = [Dim(1) if size == 1 else dim for size, dim in zip(sizes, result, strict=True)]
            self._write_known(node, 1, repeats, 1)

    def _write_shape(self, node: ir.Node) -> None:
        """Write the constant sizes of a ConstantOfShape in numbers."""
        target = node.inputs[0]
        content = None if target is None else self.shapes.contents.get(target)
        if content is not None and not content.is_constant:
            self._write_known(node, 0, content.elements(), 0)

    def _write_known(self, node: ir.Node, index: int, entries: Sequence[Dim], other: int) -> None:
        """Write the constant sizes of a target: ``Where(constant, sizes, computed)``, ``other`` elsewhere."""
        target = node.inputs[index]
        # A multiple of a symbol may count channels, and those that a cut removes must not be asked for.
        if target is None or any(dim.factor != 1 for dim in entries if not dim.is_constant):
            return
        known = np.array([dim.is_constant for dim in entries])
        if not known.any():
            return
        numbers = np.array([dim.size if dim.is_constant else other for dim in entries], np.int64)
        constant = self._constant(f"{target.name}_sizes", numbers)
        mask = self._constant(f"{target.name}_known", known)
        chosen = ir.node("Where", [mask, constant, target])
        self._insert(node, [chosen], constant, [len(entries)])
        node.replace_input_with(index, chosen.outputs[0])


def _graph_of(node: ir.Node) -> ir.Graph:
    if node.graph is None:
        raise ValueError(f"{node.name} stands in no graph")
    return node.graph
