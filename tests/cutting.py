"""Small models from ONNX text, and the check that every test of an operator family ends in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.ops.kept import Kept
from onnxprune.prove import prove
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.twin import make_twin
from onnxprune.types import BoolArray, ChannelGroup, IntArray, Kind

TOLERANCE = 1e-4

#: A tuple is the shape of random float weights, a list holds int64 numbers, an array stands for itself.
Constant: TypeAlias = "tuple[int, ...] | list[int] | np.ndarray"


def graph_proto(
    body: str,
    *,
    inputs: str = "float[N,3,6,6] x",
    outputs: str = "y",
    constants: Mapping[str, Constant] | None = None,
    opset: int = 17,
    seed: int = 0,
) -> onnx.ModelProto:
    """Return a model from the lines of its graph in ONNX text.

    Args:
        body: the nodes, as in ``h = Conv(x, a_w)`` (``com.microsoft.NAME`` works too).
        inputs: typed inputs; symbolic axes have names.
        outputs: names of float outputs (or typed ones), separated by semicolons; their shapes are
            inferred, as are those of all values, so that a cut has declared shapes to repair.
        constants: initializers by name.
        opset: version of the standard operators.
        seed: of the random weights.
    """
    typed = ", ".join(name if " " in name.strip() else f"float {name.strip()}" for name in outputs.split(";"))
    imports = f'"" : {opset}, "com.microsoft" : 1'
    text = f"<ir_version: 8, opset_import: [{imports}]> small ({inputs}) => ({typed}) {{{body}}}"
    proto = onnx.parser.parse_model(text)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    random = np.random.default_rng(seed)
    for name, constant in (constants or {}).items():
        proto.graph.initializer.append(numpy_helper.from_array(filled(constant, random), name))
    for number, node in enumerate(proto.graph.node):
        node.name = node.name or f"n{number}"
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def filled(constant: Constant, random: np.random.Generator) -> np.ndarray:
    """Return the contents of a constant: random ones where only a shape is given."""
    if isinstance(constant, list):
        return np.array(constant, np.int64)
    if isinstance(constant, tuple):
        fan_in = max(1, int(np.prod(constant[1:])))
        return (random.standard_normal(constant) / np.sqrt(fan_in)).astype(np.float32)
    return constant


def graph(body: str, **options: object) -> ir.Model:
    """As `graph_proto`, for `analyze`."""
    return ir.from_proto(graph_proto(body, **options))  # type: ignore[arg-type]


def open_groups(analysis: Analysis) -> dict[str, int]:
    """Return the sizes of the groups that may lose channels, by name."""
    return {group.name: group.size for group in analysis.groups if group.frozen is None}


def frozen_groups(analysis: Analysis) -> dict[str, str]:
    """Return why the other groups may not, by name."""
    return {group.name: group.frozen for group in analysis.groups if group.frozen is not None}


def group_of(analysis: Analysis, tensor: str, axis: int) -> ChannelGroup:
    """Return the only group that stands on an axis of a weight."""
    (found,) = (g for g in analysis.groups if any((m.tensor, m.axis) == (tensor, axis) for m in g.members))
    return found


def positions(group: ChannelGroup) -> set[tuple[str, int, bool]]:
    """Return the members of a group as (tensor, axis, contracted)."""
    return {(member.tensor, member.axis, member.contracted) for member in group.members}


def some_channels(analysis: Analysis, seed: int, share: float) -> dict[str, IntArray]:
    """Return random channels of every open group, at least one and never all."""
    random = np.random.default_rng(seed)
    removed = {}
    for group in analysis.groups:
        if group.frozen is None:
            count = int(np.clip(random.binomial(group.size, share), 1, group.size - 1))
            removed[group.name] = np.sort(random.permutation(group.size)[:count]).astype(np.int32)
    return removed


def trial_shapes(analysis: Analysis) -> list[dict[str, tuple[int, ...]]]:
    """Return the sizes of the analysis and, where axes are symbolic, other sizes for all of these."""
    shapes = analysis.shapes
    first, other = dict(shapes.input_shapes), {}
    for value in analysis.model.graph.inputs:
        if value.name in first:
            other[str(value.name)] = tuple(
                dim.size if dim.is_constant else dim.size + 1 for dim in shapes.dims[value]
            )
    return [first] if other == first else [first, other]


def check_cut(
    model: ir.Model,
    seed: int = 0,
    share: float = 0.4,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    allow_inexact: bool = False,
    prefer: Kind = "heads",
) -> Analysis:
    """Cut random channels of every open group, and prove the cut against its exact twin.

    Beside the proof, at all of `trial_shapes`: the working copy computes what the model computes, the cut
    model is a valid one with the declared shapes, and it has the predicted number of parameters.
    """
    analysis = analyze(model, input_shapes=input_shapes, allow_inexact=allow_inexact, prefer=prefer)
    shapes = trial_shapes(analysis)
    same = prove(model, analysis.model, shapes, tolerance=1e-6, seed=seed)
    assert same.passed, f"the working copy computes something else: {same.detail}"
    for trial in range(2):
        removed = some_channels(analysis, seed + trial, share)
        gone = analysis.removed_labels(removed)
        pruned = proved_cut(analysis, gone, shapes, seed)
        check_declared_shapes(ir.to_proto(pruned))
        predicted = cost_of(analysis.model.graph, analysis.channels, Kept(analysis.channels, gone))
        assert predicted.params == parameters(pruned)
        if removed:
            assert parameters(pruned) < parameters(analysis.model)
    return analysis


def check_declared_shapes(proto: onnx.ModelProto) -> None:
    """Let ONNX infer all shapes, and compare them with those that the model declares."""
    if all(output.type.tensor_type.HasField("shape") for output in proto.graph.output):
        onnx.checker.check_model(proto, full_check=True)
    else:  # an operator that ONNX does not know
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=False)


def proved_cut(
    analysis: Analysis, gone: BoolArray, shapes: Sequence[Mapping[str, tuple[int, ...]]], seed: int = 0
) -> ir.Model:
    """Cut, prove at all of the given shapes, and return the cut model."""
    pruned = cut(analysis.model, analysis.channels, gone)
    twin = make_twin(analysis.original, analysis.channels, gone)
    check = prove(twin, pruned, shapes, tolerance=TOLERANCE, seed=seed)
    assert check.passed, check.detail
    assert f"over {len(shapes)} random" in check.detail, f"not all sizes ran: {check.detail}"
    return pruned


def parameters(model: ir.Model) -> int:
    """Return the number of weights, floating-point and quantized."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    small = (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4)
    return sum(t.size for t in tensors if t is not None and (t.dtype.is_floating_point() or t.dtype in small))


def value_info(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    """Return a float input or output."""
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
