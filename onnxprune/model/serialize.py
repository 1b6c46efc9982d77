"""A model as a small proto, and the tensors that belong into it for the caller to place.

onnx_ir's own serializer does the graph; it sees a stand-in for every large tensor. It also differs from
what was read in three ways that are set right here: it repeats the metadata of tensors, it declares every
initializer in ``value_info`` whether the file did or not, and it loses ``training_info``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir
from onnx_ir import serde

from onnxprune.errors import ModelError
from onnxprune.messages import quoted, root_cause
from onnxprune.model.places import bodies, graph_protos, places
from onnxprune.model.wire import THRESHOLD_BYTES, Tokens

#: Mark, in ``Value.meta``, of initializers that their file declares in ``value_info``.
DECLARED = "onnxprune.declared"

#: Key, in the meta of the model and of its graph, of training information and the shapes it belongs to.
TRAINING = "onnxprune.training_info"


@dataclass(frozen=True, slots=True)
class Serialized:
    """A proto whose large payloads are tokens.

    Attributes:
        proto: the whole model otherwise.
        tokens: made the tokens.
        tensors: what belongs in place of each token, by index.
    """

    proto: onnx.ModelProto
    tokens: Tokens
    tensors: list[ir.TensorProtocol]


class _StandIn(ir.LazyTensor):
    """Declares a tensor as it is; its payload is a token."""

    __slots__ = ("_token",)

    def __init__(self, tensor: ir.TensorProtocol, token: bytes) -> None:
        super().__init__(
            lambda: tensor,
            tensor.dtype,
            ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
        self._token = token

    def tobytes(self) -> bytes:
        return self._token


def serialize(model: ir.Model, always: Callable[[str], bool]) -> Serialized:
    """Serialize ``model`` without its large tensors; the model is the same afterwards.

    Args:
        model: any model.
        always: asks, by name, for a token in place of a tensor of any size.

    Raises:
        ModelError: the model can't be written as it is.
    """
    result = Serialized(onnx.ModelProto(), Tokens(), [])
    with contextlib.ExitStack() as undo:
        _hide_declarations(model, undo)
        for place in places(model):
            stand_in = _stand_in(place.tensor, result, always(place.name))
            if stand_in is not None:
                undo.callback(place.put, place.tensor)
                place.put(stand_in)
        try:
            serde.serialize_model_into(result.proto, model)
        except serde.SerdeError as error:
            raise ModelError(f"the model can't be written: {root_cause(error)}") from error
    _restore_training(model, result.proto)
    return result


def _stand_in(tensor: ir.TensorProtocol, result: Serialized, always: bool) -> ir.TensorProtocol | None:
    """Return what takes the place of a tensor while it is serialized, None where it may stay."""
    if tensor.dtype == ir.DataType.STRING:
        return None
    if tensor.nbytes >= THRESHOLD_BYTES or always:
        result.tensors.append(tensor)
        return _StandIn(tensor, result.tokens.of(len(result.tensors) - 1))
    if isinstance(tensor, serde.TensorProtoTensor) and tensor.raw.metadata_props:
        # The serializer copies the proto and then adds the metadata once more.
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor.raw)
        del copy.metadata_props[:]
        once = serde.TensorProtoTensor(copy)
        once.metadata_props.update(tensor.metadata_props)
        return once
    if isinstance(tensor, ir.ExternalTensor):
        return ir.Tensor(
            tensor.numpy(),
            dtype=tensor.dtype,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    return None


def _hide_declarations(model: ir.Model, undo: contextlib.ExitStack) -> None:
    """Take type and shape from initializers that the file did not declare: the tensor says both."""
    for body in bodies(model):
        if isinstance(body, ir.Function):
            continue
        for value in body.initializers.values():
            if value.const_value is None:
                raise ModelError(f"initializer {quoted(str(value.name))} has no value")
            if value.meta.get(DECLARED) or value.is_graph_output() or value.is_graph_input():
                continue
            undo.callback(_restore_type, value, value.type, value.shape)
            value.type = value.shape = None


def _restore_type(value: ir.Value, kind: Any, shape: Any) -> None:
    value.type, value.shape = kind, shape


def mark_declared(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Remember which initializers of ``model`` the ``proto`` it was made from declares in ``value_info``."""
    graphs = [body for body in bodies(model) if isinstance(body, ir.Graph)]
    for graph_proto, graph in zip(graph_protos(proto), graphs, strict=True):
        names = {info.name for info in graph_proto.value_info}
        for name, value in graph.initializers.items():
            if name in names:
                value.meta[DECLARED] = True


def remember_training(proto: onnx.ModelProto, model: ir.Model) -> None:
    """Keep ``training_info`` beside the model, with the shapes of the initializers it speaks of."""
    if proto.training_info:
        remember(
            model, TRAINING, (tuple(info.SerializeToString() for info in proto.training_info), _shapes(model))
        )


def _restore_training(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Write ``training_info`` again, unless an initializer has another shape since: it would not fit."""
    kept = recall(model, TRAINING)
    if kept is None or kept[1] != _shapes(model):
        return
    for serialized in kept[0]:
        proto.training_info.add().ParseFromString(serialized)


def _shapes(model: ir.Model) -> dict[str, tuple[Any, ...]]:
    return {
        name: tuple(value.const_value.shape)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


def remember(model: ir.Model, key: str, value: object) -> None:
    """Store a note about the model that ``Model.clone`` keeps (it drops the model's own meta)."""
    model.meta[key] = value
    model.graph.meta[key] = value


def recall(model: ir.Model, key: str) -> Any:
    """Return a note about the model, None if there is none."""
    return model.meta.get(key, model.graph.meta.get(key))
