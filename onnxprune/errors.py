"""The errors a caller can meet, and the exit status each one means on the command line.

::

    OnnxPruneError                 root; the message is one line: what, where, what to do
    |-- ModelError         (1)     a model file that is missing, damaged, unsafe or not supported
    |-- DataError          (1)     evaluation data that is missing, malformed or does not fit the model
    |-- RecipeError        (1)     a recipe that is missing, damaged, or says what makes no sense
    |-- PlanError          (1)     a plan that is damaged or does not belong to this model
    |-- ImporterError      (1)     a PyTorch model that cannot be exported, or an export that differs from it
    |-- OutputError        (1)     an output that cannot or must not be written
    |-- RuntimeFailure     (1)     ONNX Runtime refused or failed to run a model, or lacks a provider
    |   `-- RunTooLong     (1)     a run was ended because it took far longer than such a model should
    |-- VerificationError  (1)     a model is not what it claims to be
    |   `-- ProofError     (1)     a cut model differs from its exact twin; nothing was written
    |-- WorkersError       (1)     a cluster can't be reached, has no workers, or runs other versions
    |-- MissingExtra       (1)     an optional dependency is not installed
    |-- TuningError        (1)     tuning went astray, or a checkpoint is of another run
    |-- UsageError         (2)     options that make no sense, alone or together
    |-- LimitMissed        (3)     ran, and a limit that was given was missed; ``reasons`` says why, by layer
    `-- NothingToPrune     (4)     nothing could be pruned; ``reasons`` says why, group by group

Anything else that escapes is a bug and shows a traceback.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import ClassVar

from onnxprune.messages import visible


def _plain(text: str) -> str:
    """Return the whole of a text, harmless to a terminal."""
    return visible(text, len(text))


class OnnxPruneError(Exception):
    """Root of every error that the user can act upon. The message is a single line.

    Whatever a file has put into it (names of nodes, most of all) is harmless to a terminal.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(_plain(message))


class ModelError(OnnxPruneError):
    """A model file is missing, damaged, unsafe or uses what is not supported."""


class DataError(OnnxPruneError):
    """Calibration or evaluation data is missing, malformed or does not fit the model."""


class RecipeError(OnnxPruneError):
    """A recipe is missing, damaged, or says what makes no sense."""


class PlanError(OnnxPruneError):
    """A plan is damaged, or does not belong to the model it is applied to."""


class ImporterError(OnnxPruneError):
    """A PyTorch model could not be exported, or the export differs from it."""


class OutputError(OnnxPruneError):
    """An output can't be written, or must not be (it would overwrite an input)."""


class RuntimeFailure(OnnxPruneError):
    """ONNX Runtime refused or failed to run a model, or a provider is missing."""


class RunTooLong(RuntimeFailure):
    """A run was ended because it took far longer than a model of that size should; others would, too."""


class VerificationError(OnnxPruneError):
    """A model is not what it claims to be."""


class ProofError(VerificationError):
    """A cut model differs from its exact twin. Nothing was written."""


class WorkersError(OnnxPruneError):
    """A cluster can't be reached or used: no workers, other versions, or all of them died."""


class MissingExtra(OnnxPruneError):
    """An optional dependency is not installed; the message holds the command that installs it."""


class TuningError(OnnxPruneError):
    """Tuning went astray (its loss is no number any more), or a checkpoint is damaged or of another run."""


class UsageError(OnnxPruneError):
    """Options that make no sense, alone or together."""

    exit_status = 2


class LimitMissed(OnnxPruneError):
    """The work was done, and a limit that the user gave was missed.

    Attributes:
        reached: the share of the original that could be reached, None where the limit is no share.
        reasons: what stands in the way, one line for each layer: its name, a colon, the reason.
    """

    exit_status = 3

    def __init__(self, message: str, reached: float | None = None, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reached = reached
        self.reasons = tuple(map(_plain, reasons))


class NothingToPrune(OnnxPruneError):
    """Nothing could be pruned.

    Attributes:
        reasons: one line for each group or tensor that was considered.
    """

    exit_status = 4

    def __init__(self, message: str, reasons: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.reasons = tuple(map(_plain, reasons))


def require_extra(what: str, extra: str, *packages: str) -> None:
    """Make sure that optional packages are there, without importing them.

    Args:
        what: what needs them, for the message.
        extra: the extra of this package that brings them.
        packages: by the name that is imported.

    Raises:
        MissingExtra: one is not installed.
    """
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise MissingExtra(f"{what} needs {name}: pip install 'onnxprune[{extra}]'")
