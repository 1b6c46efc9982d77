"""ONNX Runtime: sessions on files and on models in memory, providers by name.

The only module that imports onnxruntime. Its telemetry, its console output and its exceptions stay in here.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from onnxprune.errors import ModelError, RuntimeFailure, UsageError
from onnxprune.messages import one_line
from onnxprune.model.skeleton import skeleton
from onnxprune.registry import did_you_mean

# read when the library is loaded: without it, Linux wheels from 1.29 on write into the home folder
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as _native

Optimize = Literal["all", "basic", "none"]


class TensorInfo(NamedTuple):
    """Shape (None for a symbolic axis) and numpy type of an input or output."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class Provider(NamedTuple):
    """An execution provider: ONNX Runtime's name for it, and the package that brings it."""

    name: str
    package: str


PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", "onnxruntime-gpu"),
    "tensorrt": Provider("TensorrtExecutionProvider", "onnxruntime-gpu"),
    "tensorrt-rtx": Provider("NvTensorRTRTXExecutionProvider", "onnxruntime-trt-rtx"),
    "openvino": Provider("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "coreml": Provider("CoreMLExecutionProvider", "onnxruntime"),
    "directml": Provider("DmlExecutionProvider", "onnxruntime-directml"),
    "qnn": Provider("QNNExecutionProvider", "onnxruntime-qnn"),
    "migraphx": Provider("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "webgpu": Provider("WebGpuExecutionProvider", "onnxruntime-webgpu"),
    "xnnpack": Provider("XnnpackExecutionProvider", "onnxruntime"),
    "dnnl": Provider("DnnlExecutionProvider", "onnxruntime-dnnl"),
}

_LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

# "tensor(float)" -> type; names are ONNX Runtime's
_ELEMENT_TYPES: Mapping[str, ir.DataType] = {
    "float": ir.DataType.FLOAT,
    "double": ir.DataType.DOUBLE,
    **{data_type.name.lower(): data_type for data_type in ir.DataType},
}

#: Types that numpy lacks and ONNX Runtime only takes as raw bytes: their raw form.
_RAW: Mapping[int, type[np.unsignedinteger[Any]]] = {
    int(ir.DataType.BFLOAT16): np.uint16,
    int(ir.DataType.FLOAT8E4M3FN): np.uint8,
    int(ir.DataType.FLOAT8E4M3FNUZ): np.uint8,
    int(ir.DataType.FLOAT8E5M2): np.uint8,
    int(ir.DataType.FLOAT8E5M2FNUZ): np.uint8,
}

#: Above this size an optimized model keeps its weights in a second file (protobuf ends at 2 GiB).
_ONE_FILE_BYTES = 1 << 30

_FATAL_ONLY = 4  # severity 3 would repeat on stderr what the exception says

# its exceptions have no common root but Exception itself
_ORT_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
)

onnxruntime.set_default_logger_severity(_FATAL_ONLY)
if hasattr(onnxruntime, "disable_telemetry_events"):
    onnxruntime.disable_telemetry_events()


class Session:
    """A model that is ready to run; made by `open_session`.

    Attributes:
        inputs: shape and type of every input, by name, in the model's order.
        outputs: the same for every output.
        providers: ONNX Runtime's names of the providers in use, the preferred one first.
    """

    def __init__(self, native: onnxruntime.InferenceSession, label: str, kept: object = None) -> None:
        self._native = native
        self._label = label
        self._kept = kept  # arrays that the session reads without owning them
        self.inputs = {node.name: _tensor_info(node) for node in native.get_inputs()}
        self.outputs = {node.name: _tensor_info(node) for node in native.get_outputs()}
        self.providers: tuple[str, ...] = tuple(native.get_providers())
        self._element_types = {
            node.name: int(_element_type(node.type) or 0)
            for node in (*native.get_inputs(), *native.get_outputs())
        }
        self._needs_raw = any(element_type in _RAW for element_type in self._element_types.values())
        self._options = onnxruntime.RunOptions()
        self._options.log_severity_level = _FATAL_ONLY

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the model's order."""
        return tuple(self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return tuple(self.outputs)

    def run(
        self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the model once.

        Args:
            feeds: one array per input, of the shape and type in ``inputs``.
            outputs: names of the outputs to compute; all of them if None.

        Returns:
            The outputs by name, in the order asked for. Types that numpy lacks are those of ml_dtypes.

        Raises:
            RuntimeFailure: ONNX Runtime refused the inputs or failed.
        """
        names = list(self.outputs if outputs is None else outputs)
        try:
            if self._needs_raw:
                return self._run_raw(feeds, names)
            return dict(zip(names, self._native.run(names, dict(feeds), self._options), strict=True))
        except _ORT_ERRORS as error:
            raise RuntimeFailure(f"{self._label}: run failed: {_reason(error)}") from None

    def run_in_place(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the model once, as `run`, for all outputs without a copy of each.

        Returns:
            The outputs by name, read-only: ONNX Runtime's own memory, which lives as long as the arrays.

        Raises:
            RuntimeFailure: ONNX Runtime refused the inputs or failed.
        """
        if self._needs_raw:
            return self.run(feeds)
        try:
            values = {name: _to_ort(array, 0) for name, array in feeds.items()}
            results = self._native.run_with_ort_values(list(self.outputs), values, self._options)
        except _ORT_ERRORS as error:
            raise RuntimeFailure(f"{self._label}: run failed: {_reason(error)}") from None
        pairs = zip(self.outputs.items(), results, strict=True)
        return {name: np.asarray(_Borrowed(result, info.dtype)) for (name, info), result in pairs}

    def _run_raw(self, feeds: Mapping[str, np.ndarray], names: list[str]) -> dict[str, np.ndarray]:
        values = {name: _to_ort(array, self._element_types.get(name, 0)) for name, array in feeds.items()}
        results = self._native.run_with_ort_values(names, values, self._options)
        return {name: _from_ort(result) for name, result in zip(names, results, strict=True)}


class _Borrowed:
    """What numpy asks an owner of memory for: it keeps the owner as long as arrays look at the memory."""

    def __init__(self, value: onnxruntime.OrtValue, dtype: np.dtype[Any]) -> None:
        self._value = value
        shape = tuple(value.shape())
        # an empty tensor may have no address
        address = value.data_ptr() if math.prod(shape) else ctypes.addressof(_NOTHING)
        self.__array_interface__ = {
            "data": (address, True), "shape": shape, "typestr": dtype.str, "version": 3
        }  # fmt: skip


_NOTHING = ctypes.c_byte()


def open_session(
    model: ir.Model | str | Path,
    *,
    provider: str = "cpu",
    threads: int = 1,
    optimize: Optimize = "all",
    prepack: bool = True,
    spinning: bool = True,
    arena: bool = True,
    extra_outputs: Sequence[str] = (),
    label: str | None = None,
) -> Session:
    """Open a model file, or a model in memory without serializing its large tensors.

    ONNX Runtime copies the tensors of a model in memory once. With ``optimize="none"`` and ``prepack=False``
    on CPU it reads them in place; a file's external data is then memory-mapped, too.

    Args:
        model: a path (external data is found beside the file), or a model, which is not changed. Its arrays
            must not be written to while the session lives.
        provider: a key of `PROVIDERS`, or ONNX Runtime's own name of one.
        threads: threads of one operator; 0 for one per core.
        optimize: how far ONNX Runtime rewrites the graph.
        prepack: let kernels store weights in their own layout (faster runs, a second copy of the weights).
        spinning: let idle threads spin; switch it off where several sessions share the cores.
        arena: keep the memory of a run for the next one; without, it goes back to the system.
        extra_outputs: names of values of the main graph to return as well (models in memory only).
        label: what messages call the model; its path by default.

    Raises:
        UsageError: an unknown provider, or an extra output that the graph does not have.
        ModelError: the path is no regular file.
        RuntimeFailure: ONNX Runtime refused the model, or the provider is missing or did not start.
    """
    label = one_line(label or (model if isinstance(model, (str, Path)) else "model"))
    chosen = _find_provider(provider)
    options = _session_options(threads, optimize, prepack, spinning)
    options.enable_cpu_mem_arena = options.enable_mem_pattern = arena
    source, kept = _prepare(model, options, extra_outputs, label)
    if optimize == "none" and chosen == "CPUExecutionProvider":
        # saves the copy; not where ONNX Runtime rewrites the graph: it permutes tensors under their own name
        for name, value in kept.items():
            options.add_initializer(name, value)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            native = _create(source, options, chosen)
    except _ORT_ERRORS as error:
        raise RuntimeFailure(f"{label}: ONNX Runtime cannot open it: {_reason(error)}") from None
    if chosen not in native.get_providers():
        raise RuntimeFailure(
            f"provider {provider!r} is installed but did not start: "
            f"{one_line(printed.getvalue() or 'its libraries or its device are missing')}"
        )
    return Session(native, label, kept=(options, kept))


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
    label = one_line(model) if isinstance(model, (str, Path)) else "model"
    options = _session_options(threads=1, optimize=level, prepack=False, spinning=False)
    options.optimized_model_filepath = str(out_path)
    source, kept = _prepare(model, options, (), label)
    try:
        if _weight_bytes(model) >= _ONE_FILE_BYTES:
            key = "session.optimized_model_external_initializers_file_name"
            options.add_session_config_entry(key, f"{Path(out_path).name}.data")
        _create(source, options, "CPUExecutionProvider")
    except (*_ORT_ERRORS, DecodeError) as error:
        raise RuntimeFailure(f"{label}: ONNX Runtime cannot optimize it: {_reason(error)}") from None
    del kept


def available_providers() -> tuple[str, ...]:
    """Return the keys of `PROVIDERS` that the installed ONNX Runtime has."""
    installed = onnxruntime.get_available_providers()
    return tuple(key for key, provider in PROVIDERS.items() if provider.name in installed)


def _find_provider(name: str) -> str:
    by_native_name = {provider.name: provider for provider in PROVIDERS.values()}
    provider = PROVIDERS.get(name.lower()) or by_native_name.get(name)
    if provider is None:
        known = ", ".join(PROVIDERS)
        raise UsageError(f"unknown provider {name!r}{did_you_mean(name, PROVIDERS)}; known: {known}")
    if provider.name not in onnxruntime.get_available_providers():
        raise RuntimeFailure(
            f"provider {name!r} is not in the installed ONNX Runtime (it has: "
            f"{', '.join(available_providers())}); try: pip install {provider.package}"
        )
    return provider.name


def _session_options(
    threads: int, optimize: str, prepack: bool, spinning: bool
) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[optimize]
    options.log_severity_level = _FATAL_ONLY
    options.add_session_config_entry("session.disable_prepacking", "0" if prepack else "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return options


def _prepare(
    model: ir.Model | str | Path,
    options: onnxruntime.SessionOptions,
    extra_outputs: Sequence[str],
    label: str,
) -> tuple[str | bytes, dict[str, onnxruntime.OrtValue]]:
    """Return what InferenceSession opens, and the values that must outlive it (known to ``options`` too)."""
    if isinstance(model, (str, Path)):
        if extra_outputs:
            raise UsageError("extra outputs need a model in memory, not a path")
        if not Path(model).is_file():
            raise ModelError(f"{label}: no such model file")
        return str(model), {}
    try:
        parts = skeleton(model, extra_outputs)
        source = parts.proto.SerializeToString()
    except (OSError, ValueError) as error:
        raise RuntimeFailure(f"{label}: cannot be handed to ONNX Runtime: {one_line(error)}") from None
    values = {name: _to_ort(array, parts.element_types[name]) for name, array in parts.tensors.items()}
    options.add_external_initializers(list(values), list(values.values()))
    return source, values


def _create(
    source: str | bytes, options: onnxruntime.SessionOptions, provider: str
) -> onnxruntime.InferenceSession:
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        onnxruntime.preload_dlls()  # finds CUDA libraries that pip installed; prints what it misses
    names = [provider, *(["CPUExecutionProvider"] if provider != "CPUExecutionProvider" else [])]
    return onnxruntime.InferenceSession(source, options, providers=names, enable_fallback=0)


def _weight_bytes(model: ir.Model | str | Path) -> int:
    if isinstance(model, (str, Path)):
        size_bytes = Path(model).stat().st_size
        if size_bytes >= _ONE_FILE_BYTES:
            return size_bytes
        model = ir.load(model)  # maps external data, and does not read it
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def _to_ort(array: np.ndarray, element_type: int) -> onnxruntime.OrtValue:
    """Wrap an array without a copy (non-contiguous ones are copied)."""
    array = np.asarray(array, order="C")
    raw = _RAW.get(element_type)
    if raw is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(raw), element_type)


def _from_ort(value: onnxruntime.OrtValue) -> np.ndarray:
    element_type = value.element_type()
    if element_type not in _RAW:
        return np.asarray(value.numpy())
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, ir.DataType(element_type).numpy()).reshape(value.shape())


def _element_type(ort_type: str) -> ir.DataType | None:
    if not ort_type.startswith("tensor("):
        return None
    return _ELEMENT_TYPES.get(ort_type[len("tensor(") : -1])


def _tensor_info(node: onnxruntime.NodeArg) -> TensorInfo:
    element_type = _element_type(node.type)
    dtype = np.dtype(object) if element_type is None else np.dtype(element_type.numpy())
    # some exporters write -1 or 0 for "any"
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in node.shape)
    return TensorInfo(shape, dtype)


def _reason(error: BaseException) -> str:
    """Return ONNX Runtime's message without its prefix ``[ONNXRuntimeError] : 1 : FAIL :``."""
    text = str(error)
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 2)[-1]
    return one_line(text)
