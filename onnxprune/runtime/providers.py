"""Execution providers by name: which there are, what brings them, and how they start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.registry import did_you_mean
from onnxprune.runtime.library import onnxruntime


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


def available_providers() -> tuple[str, ...]:
    """Return the keys of `PROVIDERS` that the installed ONNX Runtime has."""
    installed = onnxruntime.get_available_providers()
    return tuple(key for key, provider in PROVIDERS.items() if provider.name in installed)


def find_provider(name: str) -> str:
    """Return ONNX Runtime's name of a provider that is installed."""
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
