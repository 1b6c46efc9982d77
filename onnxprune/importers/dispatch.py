"""Which importer a source needs, and the steps that all PyTorch sources go through."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxprune.errors import ImporterError, RuntimeFailure, UsageError, require_extra
from onnxprune.importers.input_shapes import InputShapes
from onnxprune.importers.result import ImportResult
from onnxprune.messages import one_line
from onnxprune.user_code import current_folder_importable

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from onnxprune.importers.agreement import Agreement
    from onnxprune.importers.example import Example
    from onnxprune.importers.source import Found

#: Batch sizes that an export with a dynamic batch is compared at; torch takes 1 for special.
COMPARED_BATCH_SIZES = (1, 2, 5)

#: Inputs that an export with a fixed batch is compared on.
COMPARED_INPUTS = 3


def import_model(
    source: str | Path | torch.nn.Module | torch.export.ExportedProgram,
    example_inputs: Any = None,
    *,
    input_shapes: InputShapes | None = None,
    opset: int | None = None,
    dynamic_batch: bool = True,
    keep_batch_norm: bool = False,
    trust_input_code: bool = False,
    seed: int = 0,
) -> ImportResult:
    """Import a model from PyTorch, or pass an ``.onnx`` file through.

    A module is copied, put into evaluation mode, freed of pruning masks and parametrizations, exported with
    ``torch.onnx.export(dynamo=True)`` and compared with itself on random inputs through ONNX Runtime.

    Args:
        source: ``package.module:factory`` (a function or class, called with no arguments, or a module; the
            current folder is importable, as with ``python -m``), a module, an exported program or its
            ``.pt2`` file, or an ``.onnx`` file. Naming a Python module runs it.
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments of ``forward``; the
            first axis is the batch. None: ``input_shapes``, or what a function ``example_inputs()`` beside
            the factory returns.
        input_shapes: instead of ``example_inputs``: one shape for each input, in order or by name.
        opset: ONNX operator set; None: the exporter's default.
        dynamic_batch: make the batch axis symbolic where the module allows it; a note says where it does not.
        keep_batch_norm: leave BatchNormalization nodes in the graph.
        trust_input_code: load a ``.pt2`` file although loading it can run code that it holds.
        seed: of the random inputs, and of torch while a factory runs (it may draw weights).

    Returns:
        The model and how far it is from its source.

    Raises:
        ImporterError: a source that can't be loaded or exported, or an export that differs from it.
        MissingExtra: torch or onnxscript is not installed.
        ModelError: a bad ``.onnx`` file.
        UsageError: options that do not go together.
    """
    started = time.perf_counter()
    if isinstance(source, (str, Path)) and Path(source).suffix.lower() == ".onnx":
        if not (example_inputs is None and input_shapes is None and opset is None):
            raise UsageError(
                f"{source}: input shapes, example inputs and an opset are for PyTorch sources only"
            )
        return _pass_through(Path(source), started)
    if example_inputs is not None and input_shapes is not None:
        raise UsageError("give example inputs or input shapes, not both")
    require_extra("importing from PyTorch", "torch", "torch", "onnxscript")
    from onnxprune.importers.source import find, find_example

    # the folder stays importable throughout: a model may import more while it runs; stdout is for results
    with current_folder_importable(), contextlib.redirect_stdout(sys.stderr):
        found = find(source, trust_input_code, seed)
        example = find_example(found, example_inputs, input_shapes)
        exported = _export_and_compare(found, example, opset, dynamic_batch, keep_batch_norm, seed)
    return ImportResult(
        model=exported.model,
        max_abs_difference=exported.agreement.max_abs_difference,
        max_relative_difference=exported.agreement.max_relative_difference,
        compared_batch_sizes=exported.compared_batch_sizes,
        dynamic_axes=_dynamic_axes(exported.model),
        baked_masks=found.baked_masks,
        notes=(*found.notes, *exported.notes),
        seconds=time.perf_counter() - started,
    )


def _pass_through(path: Path, started: float) -> ImportResult:
    from onnxprune.model.io import load
    from onnxprune.runtime import admit

    model = load(path)
    admit(model)
    axes = _dynamic_axes(model)
    return ImportResult(model, None, None, (), axes, (), (), time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class _Exported:
    """An export that agrees with its source."""

    model: ir.Model
    agreement: Agreement
    compared_batch_sizes: tuple[int, ...]
    notes: tuple[str, ...]


def _export_and_compare(
    found: Found, example: Example, opset: int | None, dynamic_batch: bool, keep_batch_norm: bool, seed: int
) -> _Exported:
    """Export with a dynamic batch where that works, else with the batch as it is."""
    import torch

    from onnxprune.importers.agreement import call_reference, measure_agreement
    from onnxprune.importers.exporting import export

    # a module that can't run says so here, before the exporter says it at length
    call_reference(found.reference, example)
    notes = []
    attempts = (True, False) if dynamic_batch else (False,)
    if found.is_program:
        attempts = (False,)  # its axes were decided when it was exported
    elif dynamic_batch and example.batch_size is None:
        attempts = (False,)
        notes.append("the batch is fixed: the inputs do not have a first size in common")
    for dynamic in attempts:
        generator = torch.Generator().manual_seed(seed)
        traced = example.resized(max(2, example.batch_size or 0)) if dynamic else example
        try:
            model = export(
                found.model, traced, opset=opset, dynamic_batch=dynamic, keep_batch_norm=keep_batch_norm
            )
            compared = _comparisons(model, example, generator)
            agreement = measure_agreement(model, found.reference, compared)
        except (ImporterError, RuntimeFailure) as error:
            if not dynamic:
                raise
            notes.append(f"the batch is fixed at {example.batch_size}; with a dynamic one, {one_line(error)}")
            continue
        sizes = tuple(tried.batch_size or 0 for tried in compared)
        return _Exported(model, agreement, sizes, tuple(notes))
    raise AssertionError("the last attempt returns or raises")


def _comparisons(model: ir.Model, example: Example, generator: torch.Generator) -> list[Example]:
    axes = _dynamic_axes(model)
    if all(0 in axes.get(value.name or "", {}) for value in model.graph.inputs):
        return [example.resized(size).drawn(generator) for size in COMPARED_BATCH_SIZES]
    return [example, *(example.drawn(generator) for _ in range(COMPARED_INPUTS - 1))]


def _dynamic_axes(model: ir.Model) -> dict[str, dict[int, str]]:
    """Return the symbolic axes of each input and output that has any."""
    axes: dict[str, dict[int, str]] = {}
    for value in (*model.graph.inputs, *model.graph.outputs):
        symbols = {
            axis: str(size) for axis, size in enumerate(value.shape or ()) if not isinstance(size, int)
        }
        if symbols and value.name:
            axes[value.name] = symbols
    return axes
