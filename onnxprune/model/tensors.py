"""What a stored tensor must look like, decided from its declaration alone, in Python's unbounded integers."""

from __future__ import annotations

import math

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import quoted

#: numpy knows no more axes.
MOST_AXES = 64

#: Far above any file system's largest file; zero-sized tensors are held to it without their zeros.
MOST_ELEMENTS = 1 << 48

_TYPED_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")

#: The typed field of each element type that has one, and how many entries of it an element takes.
_FIELD: dict[ir.DataType, tuple[str, float]] = {
    ir.DataType.FLOAT: ("float_data", 1),
    ir.DataType.COMPLEX64: ("float_data", 2),
    ir.DataType.DOUBLE: ("double_data", 1),
    ir.DataType.COMPLEX128: ("double_data", 2),
    ir.DataType.INT64: ("int64_data", 1),
    ir.DataType.UINT64: ("uint64_data", 1),
    ir.DataType.UINT32: ("uint64_data", 1),
    ir.DataType.STRING: ("string_data", 1),
    # Below 6 bits, an entry of int32_data holds one byte: two or four elements.
    **dict.fromkeys((ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.FLOAT4E2M1), ("int32_data", 0.5)),
    **dict.fromkeys((ir.DataType.INT2, ir.DataType.UINT2), ("int32_data", 0.25)),
}


def size_bytes(dtype: ir.DataType, elements: int) -> int:
    """Return the bytes that ``elements`` of ``dtype`` take when stored, packed below 8 bits."""
    return (dtype.bitwidth * elements + 7) // 8


def describe(tensor: onnx.TensorProto) -> str:
    """Return how messages call a tensor."""
    return f"tensor {quoted(tensor.name)}" if tensor.name else "a tensor without a name"


def element_type(tensor: onnx.TensorProto) -> ir.DataType:
    """Return the tensor's element type.

    Raises:
        ModelError: without the model's name in front; the type is not known.
    """
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(
            f"{describe(tensor)} has the unknown element type {tensor.data_type}; export the model again"
        )
    return dtype


def count_elements(dims: list[int], what: str) -> int:
    """Return the number of elements of a shape.

    Raises:
        ModelError: without the model's name in front; a dimension is negative, or there are too many.
    """
    if len(dims) > MOST_AXES:
        raise ModelError(f"{what} has {len(dims)} axes, more than {MOST_AXES}; the file is damaged")
    if any(size < 0 for size in dims):
        raise ModelError(f"{what} has a negative dimension; the file is damaged")
    if math.prod(size for size in dims if size) > MOST_ELEMENTS:
        raise ModelError(f"{what} has impossible dimensions; the file is damaged")
    return math.prod(dims)


def check_tensor(tensor: onnx.TensorProto, raw_bytes: int | None) -> int:
    """Check that type, shape and payload of a tensor fit each other.

    Args:
        tensor: any tensor of a model.
        raw_bytes: length of its ``raw_data``, None if it has none.

    Returns:
        The bytes of the tensor when stored (0 for strings).

    Raises:
        ModelError: without the model's name in front; they do not fit.
    """
    dtype = element_type(tensor)
    what = describe(tensor)
    elements = count_elements(list(tensor.dims), what)
    if tensor.HasField("segment"):
        raise ModelError(f"{what} is stored in segments, which ONNX never defined; export the model again")
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    typed = [field for field in _TYPED_FIELDS if len(getattr(tensor, field))]
    if len(typed) + external + (raw_bytes is not None) > 1:
        raise ModelError(f"{what} has its data in two places; export the model again")
    if dtype == ir.DataType.STRING and (external or raw_bytes is not None):
        raise ModelError(f"{what} holds strings as raw bytes, which ONNX forbids; export the model again")
    size = 0 if dtype == ir.DataType.STRING else size_bytes(dtype, elements)
    if external:
        return size
    if raw_bytes is not None:
        if raw_bytes != size:
            raise ModelError(
                f"{what} has {raw_bytes} bytes, but its type and shape need {size}; the file is damaged"
            )
        return size
    _check_typed(tensor, typed, dtype, elements, what)
    return size


def check_field(tensor: onnx.TensorProto, number: int) -> None:
    """Check that field ``number`` of a tensor, whose data was taken for raw, may hold data of its type.

    Raises:
        ModelError: without the model's name in front; it may not.
    """
    field = tensor.DESCRIPTOR.fields_by_number[number].name
    if field != "raw_data" and _FIELD.get(element_type(tensor), ("", 1))[0] != field:
        raise _other_type(tensor)


def _other_type(tensor: onnx.TensorProto) -> ModelError:
    return ModelError(
        f"{describe(tensor)} has data of another type than {element_type(tensor).name}; "
        "export the model again"
    )


def _check_typed(
    tensor: onnx.TensorProto, typed: list[str], dtype: ir.DataType, elements: int, what: str
) -> None:
    if not typed:
        if elements:
            raise ModelError(f"{what} has no data; the file is damaged, or its weights were stripped")
        return
    field, entries = _FIELD.get(dtype, ("int32_data", 1))
    if typed[0] != field:
        raise _other_type(tensor)
    expected = math.ceil(elements * entries)
    found = len(getattr(tensor, field))
    if found != expected:
        raise ModelError(f"{what} has {found} values, but its shape needs {expected}; the file is damaged")
