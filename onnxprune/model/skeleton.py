"""A model as a small proto plus its large tensors, which a runtime takes over without a copy.

The large initializers are declared as external data without a file; whoever opens the proto supplies the
arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir import serde

from onnxprune.errors import ModelError, UsageError
from onnxprune.messages import root_cause
from onnxprune.model.nodes import nodes_in

#: Tensors from this size on stay out of the proto.
LARGE_BYTES = 1024

#: From this IR version on, initializers need not be inputs.
_OPTIONAL_INPUTS = 4

#: File name written into the declarations; nothing ever opens it.
_NOWHERE = "kept-in-memory"

#: Types that are stored as plain arrays, one element after the other; the rest (strings, 2, 4 and 6 bits,
#: complex numbers, exponents) stays in the proto.
_PLAIN = frozenset(
    (
        *(ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE, ir.DataType.BOOL),
        *(ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64),
        *(ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64),
        *(ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E4M3FNUZ),
        *(ir.DataType.FLOAT8E5M2, ir.DataType.FLOAT8E5M2FNUZ),
    )
)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model without its large tensors.

    Attributes:
        proto: the whole graph; large initializers are declared external, or left out if nobody
            reads them.
        tensors: the large initializers by name, C-contiguous, views of the caller's arrays where these are.
        element_types: ``TensorProto.DataType`` of each of ``tensors``.
    """

    proto: onnx.ModelProto
    tensors: dict[str, np.ndarray]
    element_types: dict[str, int]


def skeleton(model: ir.Model, extra_outputs: Sequence[str] = ()) -> Skeleton:
    """Split ``model`` into a small proto and its large tensors; the model is not changed.

    Args:
        model: any model; tensors of subgraphs and attributes stay in the proto.
        extra_outputs: names of values of the main graph that become outputs as well.

    Raises:
        UsageError: an extra output names no value of the main graph.
        OSError, ValueError: an external tensor can't be read, or what stays in the proto exceeds 2 GiB.
    """
    proto, large = without_tensors(model, extra_outputs)
    tensors = {name: np.asarray(tensor.numpy(), order="C") for name, tensor in large.items()}
    return Skeleton(proto, tensors, {name: int(tensor.dtype) for name, tensor in large.items()})


def without_tensors(
    model: ir.Model, extra_outputs: Sequence[str] = ()
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Return ``model`` as a small proto, as `skeleton` does, and its large initializers, which are not read.

    Raises:
        UsageError, OSError, ValueError: as `skeleton`.
    """
    proto, read = _bare(model, _find_values(model.graph, extra_outputs))
    tensors: dict[str, ir.TensorProtocol] = {}
    for name, value, tensor in _stored(model.graph):
        if tensor.nbytes >= LARGE_BYTES and tensor.dtype in _PLAIN:
            if not value.uses() and value not in read:
                continue  # the runtime drops what nobody reads, and then refuses to be given it
            tensors[name] = tensor
            _declare_external(proto.graph.initializer.add(), name, tensor)
        else:
            _store_inline(proto.graph.initializer.add(), name, tensor)
    return proto, tensors


def hollow(model: ir.Model) -> onnx.ModelProto:
    """Return a model of the same types and shapes that has inputs where the large initializers are.

    Whatever can be said of a graph without its weights can be said of this one, without reading them. The
    model is not changed.

    Raises:
        OSError, ValueError: what stays in the proto exceeds 2 GiB, or can't be read.
    """
    proto, _ = _bare(model, [])
    declared = {value.name for value in proto.graph.input}
    for name, _, tensor in _stored(model.graph):
        if tensor.dtype == ir.DataType.STRING or tensor.nbytes < LARGE_BYTES:
            _store_inline(proto.graph.initializer.add(), name, tensor)
        elif name not in declared:
            info = onnx.helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy())
            proto.graph.input.append(info)
    return proto


def _bare(model: ir.Model, more_outputs: Sequence[ir.Value]) -> tuple[onnx.ModelProto, set[ir.Value]]:
    """Return a model without initializers, and its inputs and outputs.

    Before IR version 4, initializers had to be inputs as well, and a runtime lets nobody supply those. So the
    proto is of that version, and its inputs are those that a caller feeds.
    """
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in _inner_tensors(model)):
        model = _with_inner_tensors_loaded(model)
    graph = model.graph
    old = model.ir_version < _OPTIONAL_INPUTS
    view = ir.GraphView(
        [value for value in graph.inputs if not (old and value.is_initializer())],
        [*graph.outputs, *more_outputs],
        nodes=graph,
        doc_string=graph.doc_string,
        opset_imports=graph.opset_imports,
        name=graph.name or "graph",
    )
    bare = ir.Model(
        view,  # type: ignore[arg-type]  # documented by GraphView; the annotation of Model lags behind
        ir_version=max(model.ir_version, _OPTIONAL_INPUTS),
        functions=tuple(model.functions.values()),
    )
    try:
        proto = serde.serialize_model(bare)
    except serde.SerdeError as error:
        raise ModelError(f"the model can't be written again: {root_cause(error)}; export it again") from error
    for declared in proto.graph.input:
        for dim in declared.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value <= 0:
                dim.Clear()  # some exporters write 0 or -1 for "any"; a runtime would insist on it
    return proto, {*view.inputs, *view.outputs}


def _stored(graph: ir.Graph) -> Iterator[tuple[str, ir.Value, ir.TensorProtocol]]:
    for name, value in graph.initializers.items():
        if value.const_value is None:
            raise ValueError(f"initializer {name!r} has no value")
        yield name, value, value.const_value


def _declare_external(proto: onnx.TensorProto, name: str, tensor: ir.TensorProtocol) -> None:
    proto.name = name
    proto.data_type = int(tensor.dtype)
    proto.dims.extend(tensor.shape.numpy())
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", _NOWHERE), ("offset", "0"), ("length", str(tensor.nbytes))):
        entry = proto.external_data.add()
        entry.key, entry.value = key, text


def _store_inline(proto: onnx.TensorProto, name: str, tensor: ir.TensorProtocol) -> None:
    serde.serialize_tensor_into(proto, _loaded(tensor))
    proto.name = name


def _find_values(graph: ir.Graph, names: Sequence[str]) -> list[ir.Value]:
    if not names:
        return []
    present = {value.name for value in graph.outputs}
    values = {output.name: output for node in graph for output in node.outputs if output.name}
    values |= {value.name: value for value in graph.inputs if value.name}
    missing = [name for name in names if name not in values]
    if missing:
        raise UsageError(f"the graph has no value {missing[0]!r}; extra outputs name outputs of its nodes")
    return [values[name] for name in dict.fromkeys(names) if name not in present]


def _inner_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    yield from model.graph.subgraphs()
    for function in model.functions.values():
        yield from function.subgraphs()


def _all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from nodes_in(model.graph)
    for function in model.functions.values():
        yield from nodes_in(function)


def _inner_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor that is not an initializer of the main graph."""
    for graph in _inner_graphs(model):
        yield from (
            value.const_value for value in graph.initializers.values() if value.const_value is not None
        )
    for node in _all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.as_tensors()


def _with_inner_tensors_loaded(model: ir.Model) -> ir.Model:
    """Return a copy, sharing the main graph's tensors, in which no inner tensor lies in a file.

    A proto opened from memory has no folder, so their files would be looked for in the current one.
    """
    copy = model.clone()
    for graph in _inner_graphs(copy):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = _loaded(value.const_value)
    for node in _all_nodes(copy):
        for name, attribute in list(node.attributes.items()):
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                node.attributes[name] = ir.AttrTensor(name, _loaded(attribute.as_tensor()))
            elif attribute.type == ir.AttributeType.TENSORS:
                loaded = [_loaded(tensor) for tensor in attribute.as_tensors()]
                node.attributes[name] = ir.AttrTensors(name, loaded)
    return copy


def _loaded(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if not isinstance(tensor, ir.ExternalTensor):
        return tensor
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)
