"""What an import gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, slots=True)
class ImportResult:
    """A model, and how far it is from what it was made of.

    Attributes:
        model: in evaluation mode, its weights in memory of their own.
        max_abs_difference: largest |export - source| over every output and input that was tried; None for an
            ``.onnx`` source, which has nothing to be compared with.
        max_relative_difference: largest max|export - source| / max|source| of one output; None likewise.
        compared_batch_sizes: batch size of each input that was tried; empty for an ``.onnx`` source, 0 where
            the tensors have no first size in common.
        dynamic_axes: by input or output name, axis -> symbol.
        baked_masks: one line for each pruned or parametrized weight that was written out.
        notes: what the user should know and did not ask for.
        seconds: wall time of the import.
    """

    model: ir.Model
    max_abs_difference: float | None
    max_relative_difference: float | None
    compared_batch_sizes: tuple[int, ...]
    dynamic_axes: Mapping[str, Mapping[int, str]]
    baked_masks: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
