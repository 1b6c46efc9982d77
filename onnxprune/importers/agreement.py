"""How far an export is from the module it was made of, on random inputs through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from onnxprune.errors import ImporterError
from onnxprune.importers.example import Example, tensors_of
from onnxprune.messages import one_line
from onnxprune.runtime import open_session

if TYPE_CHECKING:
    import onnx_ir as ir

#: Largest max|export - module| / max|module| that passes; half precision keeps 11 (bfloat16: 8) bits.
TOLERANCES = {torch.float16: 1e-2, torch.bfloat16: 5e-2}
TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Agreement:
    """The largest differences over all outputs and inputs tried.

    Attributes:
        max_abs_difference: max|export - module|.
        max_relative_difference: largest max|export - module| / max|module| of one output.
    """

    max_abs_difference: float
    max_relative_difference: float


def call_reference(reference: Callable[..., Any], example: Example) -> list[torch.Tensor]:
    """Run the module and return its output tensors.

    Raises:
        ImporterError: if it raises, or gives no tensor back.
    """
    try:
        with torch.no_grad():
            outputs = tensors_of(reference(*example.args, **example.kwargs))
    except Exception as error:  # the user's code; the inputs may not suit it
        reason = f"{type(error).__name__} on inputs of shape {_shapes(example)}: {one_line(error)}"
        raise ImporterError(f"the module raised {reason}") from error
    if not outputs:
        raise ImporterError("the module gives no tensor back")
    return outputs


def measure_agreement(
    model: ir.Model, reference: Callable[..., Any], examples: Sequence[Example]
) -> Agreement:
    """Run both on the same inputs and compare.

    Args:
        model: the export.
        reference: the module it was made of.
        examples: inputs to try.

    Raises:
        ImporterError: other inputs or outputs than the module's, or a difference above ``TOLERANCES``.
        RuntimeFailure: ONNX Runtime can't run the export.
    """
    session = open_session(model, label="the export")
    names = [value.name or "" for value in model.graph.inputs]
    worst_absolute = worst_relative = 0.0
    for example in examples:
        tensors = example.tensors
        if len(tensors) != len(names):
            raise ImporterError(
                f"the export has {len(names)} inputs, the module takes {len(tensors)} tensors"
            )
        expected = call_reference(reference, example)
        got = session.run({name: to_array(tensor) for name, tensor in zip(names, tensors, strict=True)})
        if len(got) != len(expected):
            raise ImporterError(
                f"the export has {len(got)} outputs, the module gives {len(expected)} tensors"
            )
        for output, tensor in zip(model.graph.outputs, expected, strict=True):
            name = output.name or ""
            absolute, relative = _differences(name, got[name], to_array(tensor))
            allowed = TOLERANCES.get(tensor.dtype, TOLERANCE)
            if not relative <= allowed:  # "not <=": NaN must fail
                raise ImporterError(
                    f"the export differs from the module: output {name!r} by {relative:.1e} of its largest "
                    f"value (allowed {allowed:.0e}) on inputs of shape {_shapes(example)}"
                )
            worst_absolute, worst_relative = max(worst_absolute, absolute), max(worst_relative, relative)
    return Agreement(worst_absolute, worst_relative)


def _shapes(example: Example) -> str:
    return ", ".join(str(list(tensor.shape)) for tensor in example.tensors)


def to_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return the tensor as numpy sees it; bfloat16 becomes that of ml_dtypes."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def _differences(name: str, got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> tuple[float, float]:
    """Return max|got - expected| and its ratio to max|expected|; what is not finite must be equal."""
    if got.shape != expected.shape:
        raise ImporterError(f"the export gives {name!r} the shape {got.shape}, the module {expected.shape}")
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    got, expected = got.astype(wide), expected.astype(wide)
    finite = np.isfinite(expected)
    if not np.array_equal(got[~finite], expected[~finite], equal_nan=True):
        return np.inf, np.inf
    difference = float(np.max(np.abs(got[finite] - expected[finite]), initial=0.0))
    scale = float(np.max(np.abs(expected[finite]), initial=0.0))
    if difference == 0.0:
        return 0.0, 0.0
    return difference, difference / scale if scale else np.inf
