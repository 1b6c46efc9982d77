"""ONNX Runtime itself, told to send nothing and to print nothing, and the exceptions that it throws."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import one_line
from onnxprune.model.io import check

# read when the library is loaded: without it, Linux wheels from 1.29 on write into the home folder
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# the other modules take it from here, so that it is told first
import onnxruntime as onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

FATAL_ONLY = 4  # severity 3 would repeat on stderr what the exception says

# its exceptions have no common root but Exception itself
ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
)

VERSION: str = onnxruntime.__version__

onnxruntime.set_default_logger_severity(FATAL_ONLY)
if hasattr(onnxruntime, "disable_telemetry_events"):
    onnxruntime.disable_telemetry_events()


def reason(error: BaseException) -> str:
    """Return ONNX Runtime's message without its prefix ``[ONNXRuntimeError] : 1 : FAIL :``."""
    text = str(error)
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 2)[-1]
    return one_line(text.replace("indices\n", "indices"))  # which ones stands on the next line


def label_of(model: ir.Model | str | Path) -> str:
    """Return what messages call a model: its path, if it has one."""
    return one_line(model) if isinstance(model, (str, Path)) else "model"


def check_file(path: str | Path, label: str) -> None:
    """Refuse a file before ONNX Runtime sees it, unless it is in order and all that it names is, too.

    ONNX Runtime follows hard links out of the folder, and ends the process on some files.

    Raises:
        ModelError: there is no such file, or it can't be right.
    """
    if not Path(path).is_file():
        raise ModelError(f"{label}: no such model file")
    check(path)
