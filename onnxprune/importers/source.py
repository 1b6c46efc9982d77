"""What a source names: a module (a copy, ours to change) or an exported program, and example inputs."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from onnxprune.errors import ImporterError, UsageError
from onnxprune.importers import factory
from onnxprune.importers.baking import MASK_SUFFIX, bake_masks, copy_for_inference
from onnxprune.importers.example import Example, example_from_given, example_from_shapes
from onnxprune.importers.input_shapes import InputShapes
from onnxprune.messages import one_line, visible
from onnxprune.reading import opened

#: Pickled modules, state dicts and TorchScript archives.
_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".ptl", ".torchscript")


@dataclass(frozen=True, slots=True)
class Found:
    """What a source turned out to be.

    Attributes:
        model: our own copy of a module, or an exported program.
        reference: what the export is compared with: the copy, or the program as a module.
        name: for messages.
        baked_masks: what was baked into the copy.
        example_inputs: the function beside the factory, if there is one.
        notes: for the user.
    """

    model: torch.nn.Module | torch.export.ExportedProgram
    reference: torch.nn.Module
    name: str
    baked_masks: tuple[str, ...] = ()
    example_inputs: Any = None
    notes: tuple[str, ...] = ()

    @property
    def is_program(self) -> bool:
        """True for an exported program, whose dynamic axes and masks are fixed."""
        return isinstance(self.model, torch.export.ExportedProgram)


def find(source: object, trust_input_code: bool, seed: int) -> Found:
    """Return what ``source`` names; see ``import_model`` for what it may be and for the arguments.

    Raises:
        ImporterError: a source that can't be found, loaded or copied, or must not be loaded.
        UsageError: an object that is no source.
    """
    if isinstance(source, torch.export.ExportedProgram):
        return _found_program(source, "exported program")
    if isinstance(source, torch.nn.Module):
        return _found_module(source, type(source).__name__, None)
    if not isinstance(source, (str, Path)):
        raise UsageError(
            f"can't import a {type(source).__name__}: give a torch.nn.Module or an exported program"
        )
    if Path(source).suffix.lower() == ".pt2":
        return _load_program(Path(source), trust_input_code)
    if Path(source).suffix.lower() in _CHECKPOINTS:
        raise ImporterError(
            f"{visible(source)}: a checkpoint holds weights but no graph, and loading it can run code: "
            "name the function that builds and fills the model instead, as package.module:factory"
        )
    return _call_factory(str(source), seed)


def _found_program(program: torch.export.ExportedProgram, name: str) -> Found:
    masks = [buffer for buffer in program.graph_signature.buffers if buffer.endswith(MASK_SUFFIX)]
    notes = [f"{mask}: a pruning mask inside an exported program stays a multiplication" for mask in masks]
    return Found(program, program.module(), name, notes=tuple(notes))


def _found_module(module: torch.nn.Module, name: str, example_inputs: Any) -> Found:
    try:
        copied = copy_for_inference(module)
    except Exception as error:  # deepcopy runs the user's code
        raise ImporterError(f"{name} can't be copied: {type(error).__name__}: {one_line(error)}") from error
    return Found(copied, copied, name, bake_masks(copied), example_inputs)


def _load_program(path: Path, trust_input_code: bool) -> Found:
    if not trust_input_code:
        raise ImporterError(
            f"{visible(path)}: loading an exported program can run code that the file holds; "
            "if you trust where it came from, say so with --trust-input-code (trust_input_code=True)"
        )
    where = visible(path)
    if not path.exists():
        raise ImporterError(f"{where}: no such file")
    with opened(path, ImporterError):  # a pipe would be waited for
        pass
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # what can't be read is one line of ours
    try:
        program = torch.export.load(os.fspath(path))
    except Exception as error:  # the loader raises whatever the damaged part raises
        raise ImporterError(
            f"{where}: torch.export.load failed: {type(error).__name__}: {one_line(error)}"
        ) from error
    finally:
        logging.disable(disabled)
    return _found_program(program, str(path))


def _call_factory(reference: str, seed: int) -> Found:
    python_module, made = factory.find(reference)
    if not isinstance(made, torch.nn.Module):
        if not callable(made):
            raise ImporterError(
                f"{reference} is a {type(made).__name__}: name a function, a class or a module"
            )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            made = factory.call(made, reference)
    if isinstance(made, torch.export.ExportedProgram):
        return _found_program(made, reference)
    if not isinstance(made, torch.nn.Module):
        raise ImporterError(f"{reference} gave a {type(made).__name__}, not a torch.nn.Module")
    return _found_module(made, reference, getattr(python_module, "example_inputs", None))


def find_example(found: Found, example_inputs: Any, input_shapes: InputShapes | None) -> Example:
    """Return the inputs to trace with: given, of given shapes, the program's own, or from beside the factory.

    Raises:
        ImporterError: the function beside the factory raised.
        UsageError: nothing says what the inputs are.
    """
    if input_shapes is not None:
        return example_from_shapes(found.reference, input_shapes)
    if example_inputs is not None:
        return example_from_given(found.reference, example_inputs)
    if isinstance(found.model, torch.export.ExportedProgram) and found.model.example_inputs is not None:
        args, kwargs = found.model.example_inputs
        return Example(tuple(args), dict(kwargs))
    if callable(found.example_inputs):
        return example_from_given(found.reference, factory.call(found.example_inputs, "example_inputs()"))
    raise UsageError(
        f"{found.name}: the shapes of the inputs are not known: give them (--input-shape x=1,3,224,224) "
        "or write a function example_inputs() beside the factory"
    )
