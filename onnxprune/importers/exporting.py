"""torch's exporter, held to what we need: quiet, batch norms kept where asked, results free of torch."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn
from torch.utils import _pytree as pytree

from onnxprune.errors import ImporterError
from onnxprune.importers.example import Example
from onnxprune.messages import one_line

#: What the exporter notes on nodes and is worth keeping: which module a node came from. The rest holds paths
#: of the machine that exported, and lists of parameters that pruning makes wrong.
KEPT_METADATA = frozenset(("namespace", "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"))

#: Symbol of the batch axis.
BATCH = "batch"

#: A domain that no optimizer rule knows.
_HIDDEN = "onnxprune.hidden"

_TALKATIVE_LOGGERS = ("torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


def export(
    source: nn.Module | torch.export.ExportedProgram,
    example: Example,
    *,
    opset: int | None = None,
    dynamic_batch: bool = False,
    keep_batch_norm: bool = False,
) -> ir.Model:
    """Export with ``torch.onnx.export(dynamo=True)``.

    Args:
        source: a module in evaluation mode, or an exported program (its dynamic axes are its own).
        example: inputs to trace a module with; at least two rows where the batch is dynamic, since torch
            takes a size of 1 for a constant.
        opset: None: the exporter's default.
        dynamic_batch: make axis 0 of every input symbolic.
        keep_batch_norm: leave BatchNormalization nodes alone instead of folding them into convolutions.

    Returns:
        The model; its tensors own their memory.

    Raises:
        ImporterError: if torch can't export it.
    """
    try:
        with _quiet():
            program = _run_exporter(source, example, opset, dynamic_batch)
            _optimize(program, keep_batch_norm)
    except Exception as error:  # the exporter runs the user's code and raises what that raises
        raise ImporterError(f"torch.onnx.export failed: {_reason(error)}") from error
    if program is None:
        raise ImporterError("torch.onnx.export gave no model back")
    model = program.model
    got = model.opset_imports.get("")
    if opset is not None and got != opset:
        raise ImporterError(f"torch.onnx.export wrote opset {got}, not {opset}: try another, or leave it out")
    _forget_torch(model)
    _name_batch(model)
    return model


def _run_exporter(
    source: nn.Module | torch.export.ExportedProgram, example: Example, opset: int | None, dynamic_batch: bool
) -> torch.onnx.ONNXProgram | None:
    if isinstance(source, torch.export.ExportedProgram):
        return torch.onnx.export(source, (), dynamo=True, opset_version=opset, optimize=False, verbose=False)
    args = example.args
    if args and isinstance(args[-1], dict):
        args = (*args, {})  # torch takes a dict at the end for keyword arguments; an empty one for those
    return torch.onnx.export(
        source,
        args,
        kwargs=dict(example.kwargs),
        dynamo=True,
        opset_version=opset,
        dynamic_shapes=_batch_axes(source, example) if dynamic_batch else None,
        optimize=False,
        verbose=False,
    )


def _batch_axes(module: nn.Module, example: Example) -> dict[str, Any]:
    """Return {0: BATCH} for each tensor, None for each constant, nested as the arguments of ``forward``."""
    bound = inspect.signature(module.forward).bind(*example.args, **example.kwargs)
    axes: dict[str, Any] = pytree.tree_map(
        lambda leaf: {0: BATCH} if isinstance(leaf, torch.Tensor) else None, dict(bound.arguments)
    )
    return axes


def _optimize(program: torch.onnx.ONNXProgram | None, keep_batch_norm: bool) -> None:
    """Run the exporter's optimizer: it folds constants, fuses batch norms and removes clutter."""
    if program is None:
        return
    hidden = [
        node
        for node in ir.traversal.RecursiveGraphIterator(program.model.graph)
        if keep_batch_norm and node.op_type == "BatchNormalization" and node.domain == ""
    ]
    for node in hidden:
        node.domain = _HIDDEN
    program.optimize()
    for node in hidden:
        node.domain = ""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks off the terminal."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """The exporter wraps the cause in pages of advice; the cause itself is at the end of the chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(' '.join(str(error).split()))}"


def _forget_torch(model: ir.Model) -> None:
    """Copy weights out of torch's storage, and drop notes that hold paths of this machine."""
    model.metadata_props.clear()
    for graph in model.graphs():
        graph.metadata_props.clear()
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None:
                array = np.array(tensor.numpy(), order="C")
                value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
            value.metadata_props.clear()
        for node in graph:
            for key in node.metadata_props.keys() - KEPT_METADATA:
                del node.metadata_props[key]
            for output in node.outputs:
                output.metadata_props.clear()
        for value in graph.inputs:
            value.metadata_props.clear()


def _name_batch(model: ir.Model) -> None:
    """Name the symbol of the batch axis, if inputs share one; torch writes s77 where they are nested."""
    first_axes = {str(value.shape[0]) if value.shape else "" for value in model.graph.inputs}
    symbol = first_axes.pop() if len(first_axes) == 1 else ""
    if not symbol.isidentifier() or symbol == BATCH:
        return
    pattern = re.compile(rf"\b{symbol}\b")
    for graph in model.graphs():
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.shape is not None:
                # sizes may be expressions of the symbol: 3*s77 + 1
                value.shape = ir.Shape(
                    size if isinstance(size, int) else pattern.sub(BATCH, str(size)) for size in value.shape
                )
