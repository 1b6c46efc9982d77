"""The size of every axis of every value, and which sizes are the same for every input.

The graph is walked once with concrete input sizes. Beside each concrete size, a symbolic one is carried: a
`Dim` says whether the number holds for every input (a constant), or depends on a symbolic axis of an input
and how. Small integer tensors (targets of Reshape, bounds of Slice) are followed through the arithmetic that
computes them, element by element, in the same two forms. Nothing is guessed: what cannot be shown to be
constant is symbolic.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from onnx import shape_inference

from onnxprune.messages import one_line
from onnxprune.model import (
    body_shapes,
    contrib_attention_shapes,
    contrib_fused_shapes,
    contrib_shapes,
    output_sizes,
    quantized_shapes,
    sequence_shapes,
    shape_values,
)
from onnxprune.model.dims import Dim, ShapeValue
from onnxprune.model.index_bounds import check_indices, takes_indices
from onnxprune.model.inputs import candidate_shapes, symbol_of
from onnxprune.model.nodes import graphs_in

#: Files of shape functions: importing one files its functions.
SHAPE_FUNCTIONS = (
    contrib_attention_shapes,
    contrib_fused_shapes,
    contrib_shapes,
    quantized_shapes,
    sequence_shapes,
)

#: Elements of the largest tensor whose contents are followed; shape vectors are far smaller.
CONTENT_LIMIT = 4096

#: Positions of the longest axis that is followed.
MOST_POSITIONS = 1 << 26

#: How a reason says that other sizes of the inputs may do.
DOES_NOT_FIT = "does not fit"
#: Choices of sizes tried, until the whole graph can be inferred.
_MOST_TRIALS = 30


@dataclass(slots=True)
class Shapes:
    """What is known of the sizes in a graph at one choice of input sizes.

    Attributes:
        input_shapes: concrete shape of every graph input.
        dims: per value, one `Dim` for each axis; absent where the rank is not known.
        contents: per value, the contents of small integer tensors.
        unknown: per value without dims, the reason.
        opset: version of the standard operators.
        batches: size of the first axis of each input where that is symbolic.
    """

    input_shapes: dict[str, tuple[int, ...]]
    opset: int
    dims: dict[ir.Value, tuple[Dim, ...]] = field(default_factory=dict)
    contents: dict[ir.Value, ShapeValue] = field(default_factory=dict)
    unknown: dict[ir.Value, str] = field(default_factory=dict)
    batches: dict[str, int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples the chosen sizes hold: the batch where it is symbolic, else 1."""
        batches = set(self.batches.values())
        return batches.pop() if len(batches) == 1 else 1

    def shape(self, value: ir.Value) -> tuple[int, ...] | None:
        """Return the concrete shape of a value, or None if it is not known."""
        dims = self.dims.get(value)
        return None if dims is None else tuple(dim.size for dim in dims)

    def constant(self, value: ir.Value | None) -> np.ndarray[Any, Any] | None:
        """Return the contents of a small tensor if they are the same for every input, else None."""
        if value is None:
            return None
        content = self.contents.get(value)
        return content.numbers if content is not None and content.is_constant else None

    def add_constant(self, value: ir.Value, contents: np.ndarray[Any, Any]) -> None:
        """Record a value that was added to the graph, with constant contents."""
        self.dims[value] = tuple(Dim(size) for size in contents.shape)
        self.contents[value] = ShapeValue(contents)


def input_shapes(
    model: ir.Model, overrides: Mapping[str, Sequence[int]] | None = None
) -> dict[str, tuple[int, ...]]:
    """Return concrete shapes for every graph input, for which the graph's shapes can be inferred.

    The graph is only looked at where there is a choice, or a constant index in it.

    Args:
        model: the model; not changed.
        overrides: shapes by input name, which win over the guesses for symbolic axes.

    Raises:
        UsageError: an override names no input, has the wrong rank, or contradicts a static axis.
        ModelError: an input has no rank and no override, or a constant index lies outside what it indexes.
    """
    first, *others = islice(candidate_shapes(model, overrides or {}), 2)
    if not others and not any(map(takes_indices, model.graph)):
        return first
    return concretise(model, overrides).input_shapes


def concretise(model: ir.Model, overrides: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Infer all shapes at concrete input sizes; symbolic axes get the first sizes that fit the whole graph.

    Raises:
        UsageError: an override names no input, has the wrong rank, or contradicts a static axis.
        ModelError: an input has no rank and no override, or a constant index lies outside what it indexes.
    """
    tried = []
    answers: dict[Hashable, list[_Answer | None]] = {}
    for chosen in islice(candidate_shapes(model, overrides or {}), _MOST_TRIALS):
        tried.append(_Walk(model, chosen, answers).run())
        if not any(DOES_NOT_FIT in reason for reason in tried[-1].unknown.values()):
            break  # other sizes would help no further
    return min(tried, key=lambda shapes: len(shapes.unknown))


class _Answer(NamedTuple):
    """What ONNX infers for an output: its element type, sizes, and these with names for symbolic ones."""

    element_type: int
    sizes: tuple[int, ...]
    named: tuple[int | str | None, ...] | None


#: Kinds of attributes that say everything by their value.
_PLAIN = frozenset({
    ir.AttributeType.FLOAT, ir.AttributeType.FLOATS, ir.AttributeType.INT, ir.AttributeType.INTS,
    ir.AttributeType.STRING, ir.AttributeType.STRINGS,
})  # fmt: skip


class _Walk:
    """One pass over the nodes in topological order.

    Args:
        model: not changed.
        chosen: the shape of every input.
        answers: what ONNX said before to the same questions: networks repeat their layers.
    """

    def __init__(
        self,
        model: ir.Model,
        chosen: Mapping[str, tuple[int, ...]],
        answers: dict[Hashable, list[_Answer | None]],
    ) -> None:
        self.answers = answers
        self.graph = model.graph
        self.opsets = dict(model.graph.opset_imports or model.opset_imports)
        self.opset_ids = [
            onnx.helper.make_opsetid(domain, version) for domain, version in self.opsets.items()
        ]
        self.shapes = Shapes(dict(chosen), self.opsets.get("", 1))
        self.types: dict[ir.Value, int] = {}  # element types, where the file does not say

    def run(self) -> Shapes:
        for value in self.graph.inputs:
            if not value.is_initializer():
                sizes = self.shapes.input_shapes[str(value.name)]
                symbols = [symbol_of(value, axis) for axis in range(len(sizes))]
                if symbols and symbols[0] is not None:
                    self.shapes.batches[str(value.name)] = sizes[0]
                self.shapes.dims[value] = tuple(
                    Dim(size) if symbol is None else Dim(size, 1, (symbol,))
                    for size, symbol in zip(sizes, symbols, strict=True)
                )
        self.visit_graph(self.graph)
        return self.shapes

    def visit_graph(self, graph: ir.Graph) -> None:
        """Note the sizes of everything in the main graph, or in a body whose inputs are known."""
        for value in graph.initializers.values():
            if graph is self.graph or not value.is_graph_input():  # the node that runs a body sets its inputs
                self._constant(value, value.const_value)
        for node in graph:
            self._visit(node)

    def _leave_out_giants(self, node: ir.Node) -> None:
        """Forget sizes that no array of positions can have: a few numbers may ask for 2^60 elements."""
        for output in node.outputs:
            dims = self.shapes.dims.get(output)
            if dims is not None and not all(0 <= dim.size <= MOST_POSITIONS for dim in dims):
                del self.shapes.dims[output]
                self.shapes.contents.pop(output, None)
                self.shapes.unknown[output] = f"an axis after {node.op_type} is longer than {MOST_POSITIONS}"

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol | None) -> None:
        if tensor is None:
            self.shapes.unknown[value] = "an initializer without contents"
            return
        shape = tuple(int(dim) for dim in tensor.shape)  # type: ignore[arg-type]
        self.shapes.dims[value] = tuple(Dim(size) for size in shape)
        if tensor.dtype not in shape_values.FOLLOWED:
            return
        limit = shape_values.FLOAT_LIMIT if tensor.dtype == ir.DataType.FLOAT else CONTENT_LIMIT
        if tensor.size <= limit:
            self.shapes.contents[value] = ShapeValue(np.array(tensor.numpy()))

    def _visit(self, node: ir.Node) -> None:
        try:
            self._tell_sizes(node)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # bodies with fewer outputs than their node, and whatever else makes no sense
            self._fail(
                node, f"the inputs, attributes or bodies of {node.op_type} do not fit ({one_line(error, 80)})"
            )
        self._leave_out_giants(node)
        if node.graph is self.graph:  # a branch may never be taken
            check_indices(node, self.shapes.dims, self.shapes.contents)

    def _tell_sizes(self, node: ir.Node) -> None:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            self._constant(node.outputs[0], tensor)
            return
        content = shape_values.evaluate(
            node, self.shapes.dims, self.shapes.contents, self._opset(node.domain)
        )
        if content is not None and content.numbers.size <= CONTENT_LIMIT:
            (output,) = node.outputs
            self.shapes.contents[output] = content
            self.shapes.dims[output] = tuple(Dim(size) for size in content.numbers.shape)
            return
        function = contrib_shapes.function_for(node)
        if body_shapes.has_bodies(node):
            body_shapes.tell(node, self)
        elif function is not None:
            self._tell(node, function)
        elif not self._repeats(node):
            self._infer(node)
        if node.op_type == "Split" and not node.domain:
            parts = shape_values.split(node, self.shapes.dims, self.shapes.contents)
            self.shapes.contents.update(zip(node.outputs, parts, strict=False))

    def _tell(self, node: ir.Node, function: contrib_shapes.ShapeFunction) -> None:
        """Take the output shapes from a shape function."""
        for value in node.inputs:
            if value is not None and value not in self.shapes.dims:
                self._fail(node, self.shapes.unknown.get(value, f"the shape of {value.name} is not known"))
                return
        inputs = [None if value is None else self.shapes.dims[value] for value in node.inputs]
        told = [*function(node, inputs), *(None for _ in node.outputs)]
        typed_as = quantized_shapes.typed_as(node)
        for output, dims in zip(node.outputs, told, strict=False):
            if not output.name:
                continue
            if typed_as is not None:
                self.types[output] = self.element_type(typed_as)
            if dims is None:
                self.fail(output, f"the shape after {node.op_type} is not known")
            else:
                self.shapes.dims[output] = dims

    def _repeats(self, node: ir.Node) -> bool:
        """Note the output of a node that keeps the sizes of its inputs; False where ONNX has to be asked."""
        if node.domain not in ("", "ai.onnx") or len(node.outputs) != 1 or not node.inputs:
            return False
        first = node.inputs[0]
        dims = None if first is None else self.shapes.dims.get(first)
        if first is None or dims is None:
            return False
        if node.op_type in output_sizes.LIKE_FIRST:
            result: tuple[Dim, ...] | None = dims
        elif node.op_type in output_sizes.BROADCAST and len(node.inputs) == 2 and self._opset("") >= 7:
            second = node.inputs[1]
            other = None if second is None else self.shapes.dims.get(second)
            result = None if other is None else output_sizes.broadcast(dims, other, node.outputs[0])
        else:
            return False
        if result is None or not onnx.defs.has(node.op_type, self._opset("")):
            return False
        self.types[node.outputs[0]] = self.element_type(first, self.shapes.contents.get(first))
        self.shapes.dims[node.outputs[0]] = result
        return True

    def _opset(self, domain: str) -> int:
        return self.opsets.get(domain, self.opsets.get("", 1))

    def _infer(self, node: ir.Node) -> None:
        """Ask ONNX for the output shapes, at the concrete sizes and with the symbols in place."""
        inputs = [value for value in node.inputs if value is not None]
        contents = [self.shapes.contents.get(value) for value in inputs]
        symbolic = any(content is not None and not content.is_constant for content in contents) or any(
            not dim.is_constant for value in inputs for dim in self.shapes.dims.get(value, ())
        )
        question = self._question(node)
        answers = None if question is None else self.answers.get(question)
        if answers is None:
            told = self._answers(node, symbolic)
            if isinstance(told, str):
                self._fail(node, told)
                return
            answers = told
            if question is not None:
                self.answers[question] = answers
        for position, (output, answer) in enumerate(zip(node.outputs, answers, strict=True)):
            if not output.name:
                continue
            if answer is None:
                self.fail(output, f"the shape after {node.op_type} is not known")
                continue
            self.types[output] = answer.element_type
            self.shapes.dims[output] = self._dims(
                node, output, answer.sizes, answer.named, symbolic, position
            )

    def _question(self, node: ir.Node) -> Hashable | None:
        """Return all that the answer of ONNX depends on, None where that is much or unusual."""
        attributes = []
        for name, attribute in node.attributes.items():
            if attribute.is_ref() or attribute.type not in _PLAIN:
                return None
            value = attribute.value
            attributes.append(
                (name, attribute.type, tuple(value) if isinstance(value, list | tuple) else value)
            )
        inputs: list[Hashable] = []
        for given in node.inputs:
            if given is None:
                inputs.append(None)
                continue
            content, dims = self.shapes.contents.get(given), self.shapes.dims.get(given)
            if dims is None:
                return None
            numbers = None
            if content is not None:
                array = content.numbers
                numbers = (content.is_constant, array.dtype.str, array.shape, array.tobytes())
            inputs.append((self.element_type(given, content), dims, numbers))
        outputs = tuple(bool(output.name) for output in node.outputs)
        return node.domain, node.op_type, node.version, tuple(attributes), tuple(inputs), outputs

    def _answers(self, node: ir.Node, symbolic: bool) -> list[_Answer | None] | str:
        """Return what ONNX infers for each output, None where that is too little, or why it can't."""
        proto = contrib_shapes.as_standard(node)
        concrete = self._ask(node, proto, symbolic=False)
        if isinstance(concrete, str):
            return concrete
        general = self._ask(node, proto, symbolic=True) if symbolic else concrete
        answers: list[_Answer | None] = []
        for output in node.outputs:
            name = str(output.name)
            sizes = _written_dims(concrete[name]) if output.name and name in concrete else None
            if sizes is None or not all(isinstance(size, int) for size in sizes):
                answers.append(None)
                continue
            named = _written_dims(general[name]) if isinstance(general, dict) and name in general else None
            whole = tuple(int(size) for size in sizes if size is not None)
            answers.append(_Answer(concrete[name].tensor_type.elem_type, whole, named))
        return answers

    def _dims(
        self,
        node: ir.Node,
        output: ir.Value,
        sizes: tuple[int, ...],
        named: tuple[int | str | None, ...] | None,
        symbolic: bool,
        position: int,
    ) -> tuple[Dim, ...]:
        if not symbolic:
            return tuple(Dim(size) for size in sizes)
        if position == 0:
            exact = output_sizes.output_dims(node, self.shapes.dims, self.shapes.contents, sizes)
            if exact is not None:
                return exact
        if named is None or len(named) != len(sizes):
            named = (None,) * len(sizes)
        known = {
            dim.label: dim
            for value in node.inputs
            if value is not None
            for dim in self.shapes.dims.get(value, ())
        }
        dims = []
        for axis, (size, name) in enumerate(zip(sizes, named, strict=True)):
            if isinstance(name, int):
                dims.append(Dim(size))
            elif name in known and known[name].size == size:
                dims.append(known[name])
            else:
                dims.append(Dim(size, 1, (f"{output.name}.{axis}",)))
        return tuple(dims)

    def _ask(
        self, node: ir.Node, proto: onnx.NodeProto, *, symbolic: bool
    ) -> dict[str, onnx.TypeProto] | str:
        """Return the types ONNX infers for a node's outputs by name, or the reason why it can't.

        Symbolic axes are named in a symbolic question and have their chosen size in a concrete one.
        """
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        try:
            schema = _schema(proto.op_type, self._opset(domain), domain)
        except onnx.defs.SchemaError:
            return f"{node.domain + '.' if node.domain else ''}{node.op_type} is not a standard operator"
        if node.op_type == "Split" and node.attributes.get_int("num_outputs", len(node.outputs)) != len(
            node.outputs
        ):
            return "Split has another number of outputs than it says"  # ONNX makes room for what it says
        if graphs_in(node):
            return f"{node.op_type} runs a subgraph"
        types, data = {}, {}
        for value in node.inputs:
            if value is None:
                continue
            dims = self.shapes.dims.get(value)
            if dims is None:
                return self.shapes.unknown.get(value, f"the shape of {value.name} is not known")
            content = self.shapes.contents.get(value)
            types[str(value.name)] = onnx.helper.make_tensor_type_proto(
                self.element_type(value, content),
                [dim.label if symbolic and not dim.is_constant else dim.size for dim in dims],
            )
            # Symbolic contents stay out of the symbolic question: at other sizes they are other numbers.
            if content is not None and (content.is_constant or not symbolic):
                data[str(value.name)] = onnx.numpy_helper.from_array(content.numbers, value.name)
        try:
            inferred = shape_inference.infer_node_outputs(
                schema, proto, types, data, opset_imports=self.opset_ids
            )
        except (
            shape_inference.InferenceError,
            onnx.checker.ValidationError,
            ValueError,
            RuntimeError,
            MemoryError,
        ) as error:
            return f"{node.op_type} {DOES_NOT_FIT} its inputs ({str(error).splitlines()[0][:120]})"
        return dict(inferred)

    def element_type(self, value: ir.Value, content: ShapeValue | None = None) -> int:
        """Return the type that ONNX is told.

        All floats are float32: shapes don't depend on the precision, and old opsets refuse the newer types.
        """
        if content is not None:
            return int(onnx.helper.np_dtype_to_tensor_dtype(content.numbers.dtype))
        tensor = value.const_value
        dtype = value.dtype or (tensor.dtype if tensor is not None else None)
        if dtype is None:  # ONNX said what a Cast makes
            dtype = ir.DataType(self.types.get(value, ir.DataType.FLOAT))
        return int(ir.DataType.FLOAT if dtype.is_floating_point() else dtype)

    def _fail(self, node: ir.Node, reason: str) -> None:
        for output in node.outputs:
            self.fail(output, reason)

    def fail(self, output: ir.Value, reason: str) -> None:
        """Note that the sizes of a value are not known beyond what the file declares."""
        declared = output.shape
        if declared is not None and all(isinstance(dim, int) and dim > 0 for dim in declared):
            self.shapes.dims[output] = tuple(Dim(int(dim)) for dim in declared)  # type: ignore[arg-type]
        else:
            self.shapes.unknown[output] = reason


def _schema(op_type: str, opset: int, domain: str) -> onnx.defs.OpSchema:
    """Return the schema of an operator; a later one where that of the opset can't tell shapes.

    Raises:
        SchemaError: there is none.
    """
    schema = onnx.defs.get_schema(op_type, opset, domain)
    if not schema.has_type_and_shape_inference_function:
        latest: onnx.defs.OpSchema = onnx.defs.get_schema(op_type, domain)
        return latest if latest.has_type_and_shape_inference_function else schema
    return schema


def _written_dims(proto: onnx.TypeProto) -> tuple[int | str | None, ...] | None:
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    return tuple(
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None)
        for dim in proto.tensor_type.shape.dim
    )
