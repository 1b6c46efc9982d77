"""Input shapes as users write them: ``x=1,3,224,224`` or ``tokens=1,128:int64``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from onnxprune.errors import UsageError
from onnxprune.registry import did_you_mean

#: Element types that an input may be given; the names are those of both numpy and torch.
INPUT_DTYPES = (
    *("float32", "float16", "bfloat16", "float64"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)


@dataclass(frozen=True, slots=True)
class InputShape:
    """Shape and element type of one input.

    Attributes:
        shape: positive sizes; the first is the batch.
        dtype: one of ``INPUT_DTYPES``; None: that of the module's parameters.

    Raises:
        UsageError: for sizes below 1 or an unknown element type.
    """

    shape: tuple[int, ...]
    dtype: str | None = None

    def __post_init__(self) -> None:
        if any(size < 1 for size in self.shape):
            raise UsageError(f"input shape {self.shape}: every size must be at least 1")
        if self.dtype is not None and self.dtype not in INPUT_DTYPES:
            hint = did_you_mean(self.dtype, INPUT_DTYPES)
            raise UsageError(f"unknown element type {self.dtype!r}{hint}; known: {', '.join(INPUT_DTYPES)}")


#: One shape for each input: in order, or by the name of the parameter of ``forward``.
InputShapes: TypeAlias = Mapping[str, Sequence[int] | InputShape] | Sequence[Sequence[int] | InputShape]


def as_input_shape(given: Sequence[int] | InputShape) -> InputShape:
    """Return ``given`` as an ``InputShape``."""
    return given if isinstance(given, InputShape) else InputShape(tuple(int(size) for size in given))


def parse_input_shape(text: str) -> tuple[str | None, InputShape]:
    """Read ``[NAME=]SIZE,SIZE,...[:DTYPE]``.

    >>> parse_input_shape("tokens=1,128:int64")
    ('tokens', InputShape(shape=(1, 128), dtype='int64'))

    Raises:
        UsageError: if the text is not of that form.
    """
    name, equals, rest = text.rpartition("=")
    sizes, colon, dtype = rest.partition(":")
    try:
        shape = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        shape = ()
    if not shape or (equals and not name.isidentifier()) or (colon and not dtype):
        raise UsageError(
            f"input shape {text!r} is not of the form NAME=SIZE,SIZE,...[:DTYPE], such as x=1,3,224,224"
        )
    return name or None, InputShape(shape, dtype or None)
