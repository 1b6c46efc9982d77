"""One node on arrays: what it makes of constants, by ONNX's own reference implementation in numpy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.model.bounded import result_elements

Array: TypeAlias = "np.ndarray[Any, Any]"

#: Elements that a result may have: so many, and so many for each of the inputs.
_ROOM = 1 << 24
_TIMES_GIVEN = 16

_LOG = logging.getLogger(__name__)


def evaluate(node: ir.Node, inputs: Sequence[Array | None], opset: int) -> list[Array] | None:
    """Return the outputs of a node of the standard operators, or None where they can't be computed.

    Floating-point inputs may be float64, whatever the graph's type: the arithmetic follows the arrays.

    Args:
        node: not changed; it must have no subgraph.
        inputs: an array for each input, None where an optional input is absent.
        opset: version of the standard operators.
    """
    import onnx
    from onnx.reference import ReferenceEvaluator

    elements = result_elements(node, inputs, opset)
    stored = sum(array.size for array in inputs if array is not None)
    if elements is not None and elements > _ROOM + _TIMES_GIVEN * stored:
        return None
    names = [f"i{index}" if array is not None else "" for index, array in enumerate(inputs)]
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"o{index}" for index in range(len(node.outputs)))
    inner, outer = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in side if name]
        for side in (names, proto.output)
    )
    graph = onnx.helper.make_graph([proto], "one", inner, outer)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    feeds = {name: array for name, array in zip(names, inputs, strict=True) if array is not None}
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, feeds)
    # The reference implementation raises whatever numpy does with types that it does not foresee. A value
    # that can't be computed is one that varies, for all we know: that is always right.
    except Exception as error:  # noqa: BLE001
        _LOG.debug("%s (%s) is not evaluated: %s", node.name, node.op_type, error)
        return None
    return [np.asarray(result) for result in results]
