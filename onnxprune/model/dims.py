"""Sizes and small integer tensors, as numbers at the chosen input sizes and as products of symbolic axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

Array: TypeAlias = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Dim:
    """One size.

    Attributes:
        size: the number at the chosen input sizes.
        factor: a symbolic size is ``factor`` times the product of its symbols.
        symbols: sorted names; empty for a number that is the same for every input.
    """

    size: int
    factor: int = 1
    symbols: tuple[str, ...] = ()

    @property
    def is_constant(self) -> bool:
        """True if the size does not depend on any input."""
        return not self.symbols

    @property
    def label(self) -> str:
        """A name such that equal names mean equal sizes."""
        if self.is_constant:
            return str(self.size)
        return "*".join(([str(self.factor)] if self.factor != 1 else []) + list(self.symbols))


ONE = Dim(1)


@dataclass(frozen=True, slots=True)
class ShapeValue:
    """Contents of a small tensor.

    Attributes:
        numbers: the contents at the chosen input sizes.
        dims: object array of the same shape, a symbolic `Dim` or None (constant) for each element; None if
            every element is constant.
    """

    numbers: Array
    dims: Array | None = None

    @property
    def is_constant(self) -> bool:
        """True if the contents do not depend on any input."""
        return self.dims is None

    def elements(self) -> list[Dim]:
        """Return one `Dim` for each element of the flattened tensor."""
        symbolic = [None] * self.numbers.size if self.dims is None else self.dims.ravel().tolist()
        return [
            Dim(int(number)) if dim is None else dim
            for number, dim in zip(self.numbers.ravel().tolist(), symbolic, strict=True)
        ]


Dims: TypeAlias = Mapping[ir.Value, tuple[Dim, ...]]
Contents: TypeAlias = Mapping[ir.Value, ShapeValue]


def factor_of(dim: Dim) -> int:
    """Return the constant part of a size."""
    return dim.size if dim.is_constant else dim.factor


def product_of(a: Dim, b: Dim) -> Dim:
    """Return the product of two sizes."""
    size = a.size * b.size
    symbols = tuple(sorted(a.symbols + b.symbols))
    return Dim(size, factor_of(a) * factor_of(b), symbols) if symbols else Dim(size)
