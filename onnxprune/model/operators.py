"""Whether the nodes of a parsed model are what their operators allow: inputs, outputs, attributes.

ONNX Runtime asks the same of a node before it runs it, and a node that passes neither should never reach an
analysis. Two things are asked here that nobody else asks, because ONNX Runtime ends the whole process on
them: that no summand of a sum is left out, and that random numbers are drawn from a range that exists.
Whether types and shapes fit is ONNX Runtime's to say (`onnxprune.runtime.admission`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx

from onnxprune.errors import ModelError
from onnxprune.messages import quoted

#: Domains whose operators the onnx package knows; nothing can be said of others.
_KNOWN_DOMAINS = frozenset(("", "ai.onnx.ml"))

#: Operators that ONNX Runtime has in the standard domain, or once had, and the standard has not (any more).
_OF_THE_RUNTIME = frozenset((
    "Affine", "ATen", "Crop", "DynamicSlice", "ExperimentalDetectronROIFeatureExtractor", "FusedConv",
    "FusedGemm", "FusedMatMul", "Gelu", "GivenTensorFill", "GRUUnit", "ImageScaler", "LayerNormalization",
    "MemcpyFromHost", "MemcpyToHost", "ParametricSoftplus", "RMSNormalization", "Scale", "ScaledTanh",
    "SimplifiedLayerNormalization", "ThresholdedRelu",
))  # fmt: skip

#: The first value of a Loop's state may be left out; what other operators take any number of may not.
_MAY_LEAVE_OUT = frozenset(("Loop", "Scan"))

#: ONNX and its runtime skip attributes that begin like this.
_INTERNAL = "__"

_LONGEST_LIST = 1 << 12


@dataclass(slots=True)
class Operators:
    """Checks nodes; those of the same form are checked once.

    Attributes:
        shapes: of initializers by name.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _passed: set[Hashable] = field(default_factory=set)

    def know(self, tensors: Iterable[onnx.TensorProto]) -> None:
        """Take notice of the shapes of initializers; of those that share a name, bodies may mean either."""
        for tensor in tensors:
            shape = tuple(tensor.dims)
            if self.shapes.setdefault(tensor.name, shape) != shape:
                self.shapes[tensor.name] = ()

    def check(self, node: onnx.NodeProto, domain: str, version: int, what: object) -> None:
        """Check a node that is no call of a function of the model.

        Args:
            node: its attributes have been checked to hold what they say they hold.
            domain: of its operator; the standard one is an empty string.
            version: of that domain's operator set.
            what: how messages call the node, once it is turned into text.

        Raises:
            ModelError: without the model's name in front; the operator does not exist, or not like this.
        """
        if domain not in _KNOWN_DOMAINS:
            return
        op_type, inputs = node.op_type, node.input
        form = (
            domain,
            op_type,
            version,
            tuple(map(bool, inputs)) if len(inputs) < _LONGEST_LIST else None,
            len(node.output),
            tuple([(attribute.name, attribute.type) for attribute in node.attribute]),
        )
        if form not in self._passed:
            _check_form(node, domain, version, what)
            self._passed.add(form)
        check_values = _VALUES.get(op_type)
        if check_values is not None and not domain:
            check_values(node, what)
        if op_type in _WINDOWED and not domain:
            self._check_window(node, what)

    def _check_window(self, node: onnx.NodeProto, what: object) -> None:
        """Check what a convolution or pooling looks at, beside the weight if that is stored."""
        given = {attribute.name: attribute for attribute in node.attribute if not attribute.ref_attr_name}
        for name in ("strides", "dilations", "kernel_shape"):
            if name in given and not all(1 <= size <= _LONGEST_STEP for size in given[name].ints):
                raise _wrong_window(what, name, node.op_type)
        if "pads" in given and not all(abs(size) <= _LONGEST_STEP for size in given["pads"].ints):
            raise _wrong_window(what, "pads", node.op_type)
        groups = given["group"].i if "group" in given else 1
        place = _WINDOWED[node.op_type]
        if not 1 <= groups <= _LONGEST_STEP:
            raise _wrong_window(what, "group", node.op_type)
        weight = self.shapes.get(node.input[place], ()) if place and len(node.input) > place else ()
        if not weight:
            return
        # Conv has its outputs first and gives each group its share of them; ConvTranspose its inputs
        if len(weight) < 3 or weight[0] % groups:
            raise _wrong_window(what, "group", node.op_type)
        kernel = tuple(given["kernel_shape"].ints) if "kernel_shape" in given else weight[2:]
        if kernel != weight[2:]:
            raise _wrong_window(what, "kernel_shape", node.op_type)


def _check_form(node: onnx.NodeProto, domain: str, version: int, what: object) -> None:
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        if node.op_type in _OF_THE_RUNTIME:
            return
        raise ModelError(
            f"{what} is a {quoted(node.op_type)}, which opset {version} of {domain or 'ai.onnx'} does not "
            "have; export the model again"
        ) from None
    _check_inputs(node, schema, what)
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise ModelError(
            f"{what} has {len(node.output)} outputs, which a {node.op_type} never has; export the model again"
        )
    _check_attributes(node, schema, what)


def _check_inputs(node: onnx.NodeProto, schema: onnx.defs.OpSchema, what: object) -> None:
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise ModelError(
            f"{what} has {len(node.input)} inputs, which a {node.op_type} never has; export the model again"
        )
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for index, name in enumerate(node.input):
        parameter = schema.inputs[min(index, len(schema.inputs) - 1)]
        if not name and parameter.option != optional and node.op_type not in _MAY_LEAVE_OUT:
            raise ModelError(
                f"{what} leaves out its input {index}, which a {node.op_type} needs; export the model again"
            )


def _check_attributes(node: onnx.NodeProto, schema: onnx.defs.OpSchema, what: object) -> None:
    known = schema.attributes
    for attribute in node.attribute:
        expected = known.get(attribute.name)
        if expected is None:
            if not attribute.name.startswith(_INTERNAL):
                raise ModelError(
                    f"{what} has the attribute {quoted(attribute.name)}, which no {node.op_type} has; "
                    "export the model again"
                )
        elif expected.type != _kind(attribute.type):
            raise ModelError(
                f"{what} has the attribute {quoted(attribute.name)} with a value of another type than a "
                f"{node.op_type} takes; export the model again"
            )
    present = {attribute.name for attribute in node.attribute}
    for name, expected in known.items():
        if expected.required and name not in present:
            raise ModelError(
                f"{what} lacks the attribute {quoted(name)}, which a {node.op_type} needs; "
                "export the model again"
            )


#: Operators with windows, and the input that is their weight; 0 where there is none.
_WINDOWED = {
    "AveragePool": 0, "Conv": 1, "ConvInteger": 1, "ConvTranspose": 1, "LpPool": 0, "MaxPool": 0,
    "QLinearConv": 3,
}  # fmt: skip

#: Far more than any network strides, pads or splits into groups.
_LONGEST_STEP = (1 << 31) - 1


def _wrong_window(what: object, name: str, op_type: str) -> ModelError:
    return ModelError(
        f"{what} has a {quoted(name)} that no {op_type} of its weight and inputs can have; "
        "export the model again"
    )


def _kind(number: int) -> Any:
    return onnx.defs.OpSchema.AttrType(number)  # type: ignore[call-arg] # the stub knows no numbers


# --- values on which ONNX Runtime ends the process ----------------------------------------------------------


def _floats(node: onnx.NodeProto, **defaults: float) -> dict[str, float]:
    given: dict[str, Any] = {
        attribute.name: attribute.f for attribute in node.attribute if not attribute.ref_attr_name
    }
    return {name: float(given.get(name, default)) for name, default in defaults.items()}


def _check_normal(node: onnx.NodeProto, what: object) -> None:
    numbers = _floats(node, mean=0.0, scale=1.0)
    if not all(map(math.isfinite, numbers.values())) or numbers["scale"] <= 0:
        raise ModelError(
            f"{what} draws random numbers of mean {numbers['mean']} and deviation {numbers['scale']}, which "
            "do not exist; export the model again"
        )


def _check_uniform(node: onnx.NodeProto, what: object) -> None:
    numbers = _floats(node, low=0.0, high=1.0)
    if not all(map(math.isfinite, numbers.values())) or numbers["low"] > numbers["high"]:
        raise ModelError(
            f"{what} draws random numbers between {numbers['low']} and {numbers['high']}, which do not "
            "exist; export the model again"
        )


_VALUES: dict[str, Callable[[onnx.NodeProto, object], None]] = {
    "RandomNormal": _check_normal,
    "RandomNormalLike": _check_normal,
    "RandomUniform": _check_uniform,
    "RandomUniformLike": _check_uniform,
}
