"""What ONNX Runtime's own optimizer makes of a model, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxprune.errors import RuntimeFailure
from onnxprune.model.size import files_bytes
from onnxprune.runtime.execution import Execution
from onnxprune.runtime.library import ERRORS, label_of, onnxruntime, reason
from onnxprune.runtime.opening import create, prepare, session_options

#: Above this size an optimized model keeps its weights in a second file (protobuf ends at 2 GiB).
_ONE_FILE_BYTES = 1 << 30


def save_optimized(
    model: ir.Model | str | Path, out_path: str | Path, level: Literal["basic", "extended"] = "basic"
) -> None:
    """Write what ONNX Runtime's own optimizer makes of a model, on CPU.

    Args:
        model: a path, or a model, which is not changed.
        out_path: the new file; an existing one is overwritten. Models from 1 GiB on get a second file for
            their weights, named ``out_path`` + ".data".
        level: "basic" (constants folded, batch norms fused) or "extended" (fused operators of the CPU too).

    Raises:
        ModelError: the path is no regular file.
        RuntimeFailure: ONNX Runtime refused the model or could not write.
    """
    label = label_of(model)
    options = session_options(Execution(), optimize=level, prepack=False)
    source, kept = prepare(model, options, (), label)
    try:
        write_beside(options, Path(out_path), split=_weight_bytes(model) >= _ONE_FILE_BYTES)
        create(source, options, "CPUExecutionProvider")
    except (*ERRORS, DecodeError) as error:
        raise RuntimeFailure(f"{label}: ONNX Runtime cannot optimize it: {reason(error)}") from None
    del kept


def save_optimized_graph(
    path: str | Path, out_path: str | Path, level: Literal["basic", "extended"] = "basic"
) -> None:
    """Write what ONNX Runtime's optimizer makes of the graph of a file, without a copy of its external data.

    Constants are not folded, and tensors that nothing else is made of stay where they are: the new file names
    them as the old one does, so that they are found beside the old one alone.

    Args:
        path: a model file.
        out_path: the new file; an existing one is overwritten. More than 2 GiB of new tensors don't fit.
        level: as in `save_optimized`.

    Raises:
        ModelError, RuntimeFailure: as `save_optimized`.
    """
    label = label_of(path)
    options = session_options(Execution(), optimize=level, prepack=False)
    source, _ = prepare(path, options, (), label)
    try:
        write_beside(options, Path(out_path), split=False)
        create(source, options, "CPUExecutionProvider", without=("ConstantFolding",))
    except (*ERRORS, DecodeError) as error:
        raise RuntimeFailure(f"{label}: ONNX Runtime cannot optimize it: {reason(error)}") from None


def write_beside(options: onnxruntime.SessionOptions, out_path: Path, *, split: bool) -> None:
    """Let a session that is opened with these options write the graph that it runs, too.

    Args:
        options: of the session.
        out_path: the new file.
        split: keep its weights in a second file, named ``out_path`` + ".data".
    """
    options.optimized_model_filepath = str(out_path)
    if split:
        key = "session.optimized_model_external_initializers_file_name"
        options.add_session_config_entry(key, f"{out_path.name}.data")


def _weight_bytes(model: ir.Model | str | Path) -> int:
    if isinstance(model, (str, Path)):
        size_bytes = Path(model).stat().st_size
        if size_bytes >= _ONE_FILE_BYTES:
            return size_bytes
        return files_bytes(Path(model))
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
