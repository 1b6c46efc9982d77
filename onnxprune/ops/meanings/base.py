"""What a node computes, in torch: the table of meanings, and what a meaning is told about its node.

A meaning is a function that is called once for a node, when a program is built: it reads attributes and
constant inputs, and returns the function that runs at every step. So a step costs little more than the torch
operators it is made of. Meanings are written without regard to devices: the executor keeps sizes in main
memory and everything else where the module is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

Array: TypeAlias = npt.NDArray[Any]
Integer: TypeAlias = int  # within Static, int is the method
Real: TypeAlias = float

#: Gets one positional argument for each input of the node (None where it is omitted). Returns the output, or
#: a tuple of all outputs (None where nobody wants one). A value that is a sequence is a list.
Run: TypeAlias = Callable[..., Any]


class Body(Protocol):
    """A subgraph: takes its inputs, and gives its outputs. Outer values are those of the running node."""

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the nodes of the subgraph."""


@dataclass(slots=True)
class Mode:
    """How a module runs at the moment.

    Attributes:
        training: BatchNormalization takes the statistics of the batch, and moves the kept ones.
    """

    training: bool = False


@dataclass(slots=True)
class Static:
    """What is known of a node before it runs.

    Attributes:
        node: never changed.
        version: opset version of the node's domain.
        constants: contents of inputs that are the same at every step, by index; never a trained weight.
        bodies: the subgraphs by attribute.
        floats: element types that stand for another one, where a module runs in another precision.
        mode: read when the node runs.
    """

    node: ir.Node
    version: Integer
    constants: Callable[[Integer], Array | None] = lambda _: None
    bodies: Callable[[ir.Graph], Body] | None = None
    floats: dict[torch.dtype, torch.dtype] = field(default_factory=dict)
    mode: Mode = field(default_factory=Mode)

    def has(self, index: Integer) -> bool:
        """Return whether an input is given."""
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def constant(self, index: Integer) -> Array | None:
        """Return the contents of an input that is the same at every step, None for others."""
        return self.constants(index) if self.has(index) else None

    def numbers(self, index: Integer) -> list[Integer] | None:
        """Return an integer input (sizes, axes, pads) as a list if it is constant."""
        contents = self.constant(index)
        return None if contents is None else [Integer(number) for number in contents.reshape(-1)]

    def int(self, name: str, default: Integer = 0) -> Integer:
        """Return an integer attribute."""
        return Integer(self.node.attributes.get_int(name, default))

    def float(self, name: str, default: Real = 0.0) -> Real:
        """Return a float attribute."""
        return Real(self.node.attributes.get_float(name, default))

    def ints(self, name: str, default: Sequence[Integer] | None = None) -> list[Integer] | None:
        """Return an attribute that is a list of integers."""
        values = self.node.attributes.get_ints(name, None)
        if values is None:
            return None if default is None else list(default)
        return [Integer(value) for value in values]

    def text(self, name: str, default: str = "") -> str:
        """Return an attribute that is a string."""
        return str(self.node.attributes.get_string(name, default))

    def array(self, name: str) -> Array | None:
        """Return an attribute that is a tensor."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else attribute.as_tensor().numpy()

    def dtype(self, name: str, default: Integer = 0) -> torch.dtype | None:
        """Return an attribute that is an element type, None for 0 or absent."""
        number = self.node.attributes.get_int(name, default)
        if not number:
            return None
        found = torch_dtype(ir.DataType(number))
        return self.floats.get(found, found)

    def body(self, name: str) -> Body:
        """Return a subgraph."""
        if self.bodies is None:
            raise ValueError("a node outside a program has no bodies")
        return self.bodies(self.node.attributes[name].as_graph())

    @property
    def outputs(self) -> Integer:
        """Number of outputs up to the last one that has a name or a reader."""
        wanted = [i for i, value in enumerate(self.node.outputs) if value.name or value.uses()]
        return max(wanted, default=-1) + 1


Meaning: TypeAlias = Callable[[Static], Run]


@dataclass(frozen=True, slots=True)
class Entry:
    """A meaning and what the executor must know of it.

    Attributes:
        build: makes the function that runs.
        host: inputs that are read as numbers when the node runs (sizes, axes): they are best in main memory.
        folds: the node may be run once, in advance, where all its inputs are constant.
    """

    build: Meaning
    host: tuple[int, ...] = ()
    folds: bool = True


_MEANINGS: dict[tuple[str, str], Entry] = {}


def meaning(
    *op_types: str, domain: str = "", host: Sequence[int] = (), folds: bool = True
) -> Callable[[Meaning], Meaning]:
    """Return a decorator that files a meaning for every named operator; for the rest see `Entry`."""

    def file(build: Meaning) -> Meaning:
        for op_type in op_types:
            if (domain, op_type) in _MEANINGS:
                raise ValueError(f"two meanings of {domain}:{op_type}")
            _MEANINGS[domain, op_type] = Entry(build, tuple(host), folds)
        return build

    return file


def meaning_for(node: ir.Node) -> Entry | None:
    """Return the meaning of a node's operator, None where there is none."""
    return _MEANINGS.get(("" if node.domain == "ai.onnx" else node.domain, node.op_type))


def known_meanings() -> frozenset[tuple[str, str]]:
    """Return domain and name of every operator that has a meaning."""
    return frozenset(_MEANINGS)


class NoMeaning(Exception):
    """A node uses a form of its operator that has no torch meaning; the message says which.

    Raised by a meaning when it is built. The executor makes a `ModelError` of it.
    """


# --- element types and numbers ------------------------------------------------------------------------------

_DTYPES = {
    ir.DataType.FLOAT: torch.float32, ir.DataType.DOUBLE: torch.float64, ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16, ir.DataType.INT8: torch.int8, ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32, ir.DataType.INT64: torch.int64, ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16, ir.DataType.UINT32: torch.uint32, ir.DataType.UINT64: torch.uint64,
    ir.DataType.BOOL: torch.bool, ir.DataType.COMPLEX64: torch.complex64,
    ir.DataType.COMPLEX128: torch.complex128, ir.DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ir.DataType.FLOAT8E5M2: torch.float8_e5m2, ir.DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ir.DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    # torch has no arithmetic below 8 bits: each number takes a byte
    ir.DataType.INT4: torch.int8, ir.DataType.UINT4: torch.uint8,
    ir.DataType.INT2: torch.int8, ir.DataType.UINT2: torch.uint8,
}  # fmt: skip


def torch_dtype(dtype: ir.DataType) -> torch.dtype:
    """Return the torch type that holds numbers of an ONNX element type.

    Raises:
        NoMeaning: torch has none (strings).
    """
    found = _DTYPES.get(dtype)
    if found is None:
        raise NoMeaning(f"torch has no {dtype.name.lower()}")
    return found


def numbers_of(value: Tensor) -> list[int]:
    """Return an integer tensor of any shape as a flat list."""
    return [int(number) for number in value.reshape(-1).tolist()]


def numbers_read(node: Static, index: int) -> Callable[[Tensor | None], list[int] | None]:
    """Return what gives an input of integers as a list at run time: the constant, or the numbers read.

    The function takes the tensor that the node gets there, and gives None where the input is omitted.
    """
    known = node.numbers(index)
    if known is not None or not node.has(index):
        return lambda _: known
    return lambda value: None if value is None else numbers_of(value)


def scalar_like(array: Array | None) -> int | float | bool | None:
    """Return a constant of one element as a Python number, None for others."""
    return None if array is None or np.size(array) != 1 else np.asarray(array).reshape(-1)[0].item()
