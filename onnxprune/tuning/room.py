"""Whether memory holds what tuning keeps there, asked before any of it is read."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune import machine
from onnxprune.errors import ModelError
from onnxprune.executor.parameters import TRAINED_TYPES
from onnxprune.model.size import tensor_bytes
from onnxprune.ops.weights import locate_weights
from onnxprune.tuning.settings import Tuning

#: Bytes of a number while it trains.
_FLOAT32_BYTES = 4


def check_memory(model: ir.Model, settings: Tuning) -> None:
    """Refuse a model whose tuning takes more than all memory of this machine.

    What is counted is certainly needed: the stored tensors and, where tuning is on the CPU, the gradient of
    each weight and what the optimizer remembers of it. Activations and copies come on top of that.

    Raises:
        ModelError: naming both numbers.
    """
    there = machine.memory_bytes()
    needed = tensor_bytes(model)
    if settings.device == "cpu":
        needed += _weights(model) * _FLOAT32_BYTES * (1 + _remembered(settings))
    if there is not None and needed > there:
        raise ModelError(
            f"tuning needs {needed / 2**30:.1f} GiB for the weights, their gradients and the optimizer, more "
            f"than this machine's memory, {there / 2**30:.1f} GiB; tune on a larger machine"
        )


def _weights(model: ir.Model) -> int:
    """Return how many numbers the weights of layers have; a tied one counts once."""
    tensors = {id(weight.tensor): weight.tensor for weight in locate_weights(model)[0]}
    return sum(tensor.size for tensor in tensors.values() if tensor.dtype in TRAINED_TYPES)


def _remembered(settings: Tuning) -> int:
    """Return how many numbers the optimizer keeps of each weight."""
    if settings.optimizer == "sgd":
        return int(settings.momentum > 0)
    return 2  # means of the gradient and of its square
