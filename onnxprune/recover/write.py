"""Where a repair goes: into the stored weight, and into the bias that the layer has or is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.model.biases import BiasWriter
from onnxprune.model.float32 import in_float32
from onnxprune.model.stored import replace_stored
from onnxprune.ops.linear import Linear, find_linear
from onnxprune.types import BoolArray, FloatArray

Array = npt.NDArray[Any]


class Writer:
    """Writes repairs into a model, and into the copy in float32 that it is run as, if that is another.

    Args:
        result: changed in place.

    Attributes:
        result: the model in its own types.
        working: it in float32, with weights rounded as in ``result``.
    """

    def __init__(self, result: ir.Model) -> None:
        self.result = result
        self.working = in_float32(result)
        self._models = [result] if self.working is result else [result, self.working]
        self._biases = [BiasWriter(model.graph) for model in self._models]
        self._twins: dict[str, list[Linear]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def know(self, linears: Sequence[Linear]) -> None:
        """Take note of the layers of ``working``."""
        for linear in linears:
            self._twins[str(linear.node.name)] = [linear]
        if self.working is not self.result:
            for linear in find_linear(self.result)[0]:
                self._twins[str(linear.node.name)].insert(0, linear)

    def know_shape(self, linear: Linear, shape: tuple[int, ...]) -> None:
        """Take note of the shape of a layer's result, for some samples."""
        self._shapes[str(linear.node.name)] = shape

    def write(
        self, linear: Linear, change: FloatArray | None, intercept: FloatArray, support: BoolArray | None
    ) -> None:
        """Add a change to the weights of a layer, and an intercept to its result.

        Args:
            linear: of ``working``.
            change: float64 ``[groups, inputs, outputs]``; None for none.
            intercept: float64 ``[groups, outputs]``.
            support: bool ``[groups, inputs, outputs]``, zeros elsewhere stay exactly zero.
        """
        name = str(linear.node.name)
        twins = self._twins[name]
        if change is not None:
            first = twins[0]
            stored = first.found.tensor.numpy().astype(np.float64)
            matrix = first.matrix(stored) + change.swapaxes(1, 2)
            if support is not None:
                matrix = np.where(support.swapaxes(1, 2), matrix, 0.0)
            array = first.stored_like(matrix)
            for twin in twins:
                old = twin.found.tensor
                replace_stored(
                    twin.found.stored,
                    ir.Tensor(array.astype(old.dtype.numpy()), dtype=old.dtype, name=old.name),
                )
        delta = spread(linear, intercept, self._shapes[name])
        for twin, biases in zip(twins, self._biases, strict=True):
            rank, dtype = len(self._shapes[name]), twin.found.tensor.dtype
            biases.add_to_result(twin.node, delta, rank=rank, dtype=dtype)


def spread(linear: Linear, intercept: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """Return one number for each output as an array that broadcasts to the result of a layer.

    Args:
        linear: the layer.
        intercept: float64 ``[groups, outputs]``.
        shape: of the result.
    """
    places = linear.targets(np.arange(math.prod(shape)).reshape(shape))
    numbers = np.empty(math.prod(shape), np.int64)
    numbers[places] = np.arange(intercept.size).reshape(intercept.shape)[:, None, :]
    numbers = numbers.reshape(shape)
    for axis in range(numbers.ndim):
        first = numbers.take([0], axis)
        numbers = first if (numbers == first).all() else numbers
    while numbers.ndim and numbers.shape[0] == 1:
        numbers = numbers[0]
    return np.asarray(intercept.ravel()[numbers])
