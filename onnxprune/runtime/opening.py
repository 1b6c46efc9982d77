"""Opening sessions on files and on models in memory, without a copy of their large tensors on the way."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import onnx_ir as ir

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.messages import one_line
from onnxprune.model.copies import copy_of
from onnxprune.model.io import checked_bytes, load
from onnxprune.model.skeleton import skeleton
from onnxprune.runtime.execution import Execution
from onnxprune.runtime.library import ERRORS, FATAL_ONLY, check_file, label_of, onnxruntime, reason
from onnxprune.runtime.providers import check_options, find_provider
from onnxprune.runtime.sessions import Session
from onnxprune.runtime.values import to_ort

Optimize = Literal["all", "basic", "none"]

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_CPU = "CPUExecutionProvider"


def open_session(
    model: ir.Model | str | Path,
    *,
    execution: Execution | None = None,
    provider: str = "cpu",
    threads: int = 1,
    spinning: bool = True,
    arena: bool = True,
    optimize: Optimize = "all",
    prepack: bool = True,
    in_order: bool = False,
    extra_outputs: Sequence[str] = (),
    label: str | None = None,
) -> Session:
    """Open a model file, or a model in memory without serializing its large tensors.

    ONNX Runtime copies the tensors of a model in memory once. With ``optimize="none"`` and ``prepack=False``
    on CPU it reads them in place; a file's external data is then memory-mapped, too.

    Args:
        model: a path (external data is found beside the file), or a model, which is not changed. Its arrays
            must not be written to while the session lives.
        execution: where and how to run, with all that may be said about it; it stands for the four that
            follow, which are then not read.
        provider: a key of `PROVIDERS`, or ONNX Runtime's own name of one.
        threads: threads of one operator; 0 for one per core.
        spinning: let idle threads spin; switch it off where several sessions share the cores.
        arena: keep the memory of a run for the next one; without, it goes back to the system.
        optimize: how far ONNX Runtime rewrites the graph.
        prepack: let kernels store weights in their own layout (faster runs, a second copy of the weights).
        in_order: run nodes in their order. ONNX Runtime likes to compute first what depends on no input, such
            as the conversion of all weights, and keeps all that.
        extra_outputs: names of values of the main graph to return as well (models in memory only).
        label: what messages call the model; its path by default.

    Raises:
        UsageError: an unknown provider or option, cores that can't be had, or an extra output that the graph
            does not have.
        ModelError: the path is no regular file.
        RuntimeFailure: ONNX Runtime refused the model, or the provider is missing or did not start.
    """
    if execution is None:
        execution = Execution(provider, threads, spinning=spinning, arena=arena)
    label = one_line(label) if label else label_of(model)
    options = session_options(execution, optimize, prepack)
    if in_order:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    return start(model, execution, options, optimize=optimize, extra_outputs=extra_outputs, label=label)


def start(
    model: ir.Model | str | Path,
    execution: Execution,
    options: onnxruntime.SessionOptions,
    *,
    optimize: str,
    extra_outputs: Sequence[str] = (),
    label: str,
) -> Session:
    """Open a session with ``options`` by `session_options`; the rest is as in `open_session`."""
    chosen = find_provider(execution.provider)
    wanted = dict(execution.options)
    check_options(chosen, wanted)
    source, kept = prepare(model, options, extra_outputs, label)
    if optimize == "none" and chosen == _CPU:
        # saves the copy; not where ONNX Runtime rewrites the graph: it permutes tensors under their own name
        for name, value in kept.items():
            options.add_initializer(name, value)
    printed = io.StringIO()
    # where libraries may be missed, which is printed; not elsewhere: several threads may open sessions
    caught = contextlib.nullcontext() if chosen == _CPU else contextlib.redirect_stdout(printed)
    try:
        with caught:
            native = create(source, options, chosen, wanted)
            if any(0 in value.shape for value in native.get_inputs()):
                source, kept = prepare(_with_free_sizes(model), options, extra_outputs, label)
                native = create(source, options, chosen, wanted)
    except ERRORS as error:
        given = f" with {one_line(wanted)}" if wanted else ""
        raise RuntimeFailure(f"{label}: ONNX Runtime cannot open it{given}: {reason(error)}") from None
    if chosen not in native.get_providers():
        raise RuntimeFailure(
            f"provider {execution.provider!r} is installed but did not start: "
            f"{one_line(printed.getvalue() or 'its libraries or its device are missing')}"
        )
    check_options(chosen, wanted, native.get_provider_options().get(chosen))
    return Session(native, label, kept=(options, kept), weight_bytes=_stored_bytes(model))


def _with_free_sizes(model: ir.Model | str | Path) -> ir.Model:
    """Return a copy of a model in which sizes that are declared as 0 are free.

    Some exporters write 0 for a size that they don't know; ONNX Runtime takes it at its word, and no sample.
    """
    copy = copy_of(model if isinstance(model, ir.Model) else load(model))
    made = [value for node in copy.graph for value in node.outputs]
    for value in (*copy.graph.inputs, *made):
        if value.shape is not None and 0 in value.shape:
            value.shape = ir.Shape([None if size == 0 else size for size in value.shape])
    return copy


def _stored_bytes(model: ir.Model | str | Path) -> int:
    if isinstance(model, (str, Path)):
        return checked_bytes(model)
    values = model.graph.initializers.values()
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def session_options(execution: Execution, optimize: str, prepack: bool) -> onnxruntime.SessionOptions:
    """Return ONNX Runtime's options for these settings."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = execution.threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[optimize]
    options.log_severity_level = FATAL_ONLY
    options.enable_cpu_mem_arena = options.enable_mem_pattern = execution.arena
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if execution.spinning else "0")
    workers = execution.cores()[1:]  # the first core is the calling thread's
    if workers:
        listed = ";".join(str(core + 1) for core in workers)  # ONNX Runtime counts cores from 1
        options.add_session_config_entry("session.intra_op_thread_affinities", listed)
    return options


def prepare(
    model: ir.Model | str | Path,
    options: onnxruntime.SessionOptions,
    extra_outputs: Sequence[str],
    label: str,
) -> tuple[str | bytes, dict[str, onnxruntime.OrtValue]]:
    """Return what InferenceSession opens, and the values that must outlive it (known to ``options`` too)."""
    if isinstance(model, (str, Path)):
        if extra_outputs:
            raise UsageError("extra outputs need a model in memory, not a path")
        check_file(model, label)
        return str(model), {}
    try:
        parts = skeleton(model, extra_outputs)
        source = parts.proto.SerializeToString()
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"{label}: cannot be handed to ONNX Runtime: {one_line(error)}") from None
    values = {name: to_ort(array, parts.element_types[name]) for name, array in parts.tensors.items()}
    options.add_external_initializers(list(values), list(values.values()))
    return source, values


def create(
    source: str | bytes,
    options: onnxruntime.SessionOptions,
    provider: str,
    provider_options: Mapping[str, str] = MappingProxyType({}),
    without: Sequence[str] = (),
) -> onnxruntime.InferenceSession:
    """Open a session on a provider, with the CPU for what that leaves, without some optimizers by name."""
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        onnxruntime.preload_dlls()  # finds CUDA libraries that pip installed; prints what it misses
    chosen = [(provider, dict(provider_options))]
    if provider != _CPU:
        chosen.append((_CPU, {}))
    return onnxruntime.InferenceSession(
        source, options, providers=chosen, enable_fallback=0, disabled_optimizers=list(without)
    )
