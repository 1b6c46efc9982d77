"""ONNX Runtime: sessions on files and on models in memory, providers by name, times of kernels.

The only part that imports onnxruntime. Its telemetry, its console output and its exceptions stay in here.
"""

from onnxprune.runtime.admission import admit, admitted
from onnxprune.runtime.execution import DEFAULT, Execution, pinned
from onnxprune.runtime.kernels import Kernel, time_kernels
from onnxprune.runtime.library import VERSION
from onnxprune.runtime.opening import Optimize, open_session
from onnxprune.runtime.optimized import save_optimized, save_optimized_graph
from onnxprune.runtime.providers import PROVIDERS, Provider, available_providers, describe_providers
from onnxprune.runtime.sessions import Session
from onnxprune.runtime.values import TensorInfo

__all__ = [
    "DEFAULT",
    "PROVIDERS",
    "VERSION",
    "Execution",
    "Kernel",
    "Optimize",
    "Provider",
    "Session",
    "TensorInfo",
    "admit",
    "admitted",
    "available_providers",
    "describe_providers",
    "open_session",
    "pinned",
    "save_optimized",
    "save_optimized_graph",
    "time_kernels",
]
