"""Execution providers by name: which there are, what brings them, and how they start."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.messages import one_line, quoted
from onnxprune.registry import did_you_mean
from onnxprune.runtime.library import onnxruntime


class Provider(NamedTuple):
    """An execution provider: ONNX Runtime's name for it, and what to do to have it."""

    name: str
    install: str


def _wheel(package: str) -> str:
    """Say how to install another wheel of ONNX Runtime; two of them overwrite each other's files."""
    return f"pip install {package} (in place of onnxruntime)"


#: By the names that users type.
PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider("CPUExecutionProvider", "pip install onnxruntime"),
    "cuda": Provider("CUDAExecutionProvider", _wheel("onnxruntime-gpu[cuda,cudnn]")),
    "tensorrt": Provider("TensorrtExecutionProvider", _wheel("onnxruntime-gpu[cuda,cudnn] tensorrt-cu12")),
    "tensorrt-rtx": Provider("NvTensorRTRTXExecutionProvider", _wheel("onnxruntime-trt-rtx")),
    "openvino": Provider("OpenVINOExecutionProvider", _wheel("onnxruntime-openvino")),
    "coreml": Provider("CoreMLExecutionProvider", "pip install onnxruntime, on macOS"),
    "directml": Provider("DmlExecutionProvider", _wheel("onnxruntime-directml, on Windows")),
    "qnn": Provider("QNNExecutionProvider", _wheel("onnxruntime-qnn")),
    "migraphx": Provider("MIGraphXExecutionProvider", _wheel("onnxruntime-migraphx")),
    "webgpu": Provider("WebGpuExecutionProvider", _wheel("onnxruntime-webgpu")),
    "cann": Provider("CANNExecutionProvider", _wheel("onnxruntime-cann")),
    "xnnpack": Provider("XnnpackExecutionProvider", "build ONNX Runtime with --use_xnnpack"),
    "dnnl": Provider("DnnlExecutionProvider", "build ONNX Runtime with --use_dnnl"),
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
            f"{', '.join(available_providers())}); what to do: {provider.install}"
        )
    return provider.name


def check_options(
    provider: str, options: Mapping[str, str], accepted: Mapping[str, object] | None = None
) -> None:
    """Refuse options that a provider does not have; ONNX Runtime drops some of them without a word.

    Args:
        provider: ONNX Runtime's name of it.
        options: those that were asked for.
        accepted: those that a session runs with, as ONNX Runtime tells them once it is open. Some providers
            tell nothing: theirs can't be checked.

    Raises:
        UsageError: an option that the provider does not have.
    """
    if not options:
        return
    if provider == "CPUExecutionProvider":
        raise UsageError(f"the cpu provider takes no options, {quoted(next(iter(options)))} for one")
    unknown = [name for name in options if accepted and name not in accepted]
    if unknown and accepted:
        raise UsageError(
            f"{provider} has no option {quoted(unknown[0])}{did_you_mean(unknown[0], accepted)}; "
            f"it has: {one_line(', '.join(sorted(accepted)))}"
        )


def describe_providers() -> list[dict[str, object]]:
    """Return a row for each of `PROVIDERS`: its name, ONNX Runtime's, whether it is there, how to get it."""
    installed = onnxruntime.get_available_providers()
    return [
        {
            "provider": key,
            "in_onnx_runtime": provider.name,
            "installed": provider.name in installed,
            "install": provider.install,
        }
        for key, provider in PROVIDERS.items()
    ]
