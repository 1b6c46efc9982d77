"""Models masked as ``torch.nn.utils.prune.ln_structured`` does it: rows or columns of weights are zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from cutting import trial_shapes
from onnx import numpy_helper

import onnxprune
from onnxprune.analyze import analyze
from onnxprune.pipeline import PruneResult
from onnxprune.prove import prove


def masked(
    proto: onnx.ModelProto, zeros: Mapping[str, Sequence[int] | range], axis: int = 0
) -> onnx.ModelProto:
    """Set positions along an axis of named weights to zero, in place; biases stay."""
    for tensor in proto.graph.initializer:
        if tensor.name in zeros:
            array = numpy_helper.to_array(tensor).copy()
            np.moveaxis(array, axis, 0)[list(zeros[tensor.name])] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def half_masked(proto: onnx.ModelProto, axis: int, seed: int = 0) -> onnx.ModelProto:
    """Set a random half of the positions along an axis of every kernel and matrix to zero, in place."""
    random = np.random.default_rng(seed)
    sizes = {t.name: t.dims[axis] for t in proto.graph.initializer if len(t.dims) > 1 and t.data_type == 1}
    return masked(
        proto, {name: random.permutation(size)[: size // 2].tolist() for name, size in sizes.items()}, axis
    )


def cleaned(proto: onnx.ModelProto, **options: object) -> PruneResult:
    """Remove what is dead, and compare with the model itself: no twin, no zeros, tighter than the proof."""
    model = ir.from_proto(proto)
    result = onnxprune.prune(model, pattern="dead", **options)  # type: ignore[arg-type]
    check = prove(model, result.model, trial_shapes(analyze(model)) * 2, tolerance=1e-5, seed=3)
    assert check.passed, check.detail
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)
    return result


def removed(result: PruneResult) -> dict[str, list[int]]:
    """Return the removed channels by group, where there are any."""
    return {group.name: group.removed.tolist() for group in result.plan.groups if len(group.removed)}
