"""Sparse tensors of a file: made dense when it is read, stored sparse when it is written.

onnx_ir drops ``sparse_initializer`` with a warning and stops at ``Constant(sparse_value)``, so both are
replaced in the parsed proto before it sees them. The format is COO: values ``[nnz]`` and int64 indices,
linear ``[nnz]`` or one per axis ``[nnz, rank]``, ascending, as the ONNX specification asks. It is written
with linear indices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import quoted
from onnxprune.model.structure import Found
from onnxprune.model.tensors import count_elements, element_type, size_bytes

#: Bytes that all sparse tensors of a model may take together once they are dense.
MOST_DENSE_BYTES = 1 << 31

_INDEX_BYTES = 8
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

Array = npt.NDArray[Any]


def make_dense(
    found: Found, read: Callable[[onnx.TensorProto], Array], keep: Callable[[onnx.TensorProto, Array], None]
) -> frozenset[str]:
    """Replace every sparse tensor of a parsed model by a dense one.

    Args:
        found: where the sparse tensors are; their values and indices have been checked as tensors.
        read: returns the contents of a tensor.
        keep: stores an array as the payload of a tensor that has type, shape and name.

    Returns:
        The names of the values that were sparse.

    Raises:
        ModelError: without the model's name in front; a sparse tensor is malformed or far too large.
    """
    names: set[str] = set()
    budget = MOST_DENSE_BYTES
    for graph in found.sparse_graphs:
        for sparse in graph.sparse_initializer:
            dense = graph.initializer.add()
            budget = _densify(sparse, sparse.values.name, dense, read, keep, budget)
            names.add(dense.name)
        del graph.sparse_initializer[:]
    for node, attribute in found.sparse_attributes:
        if node.op_type != "Constant" or attribute.name != "sparse_value" or not node.output:
            raise ModelError(
                f"node {quoted(node.name)} has the sparse attribute {quoted(attribute.name)}, which is "
                "supported in Constant nodes alone; store it dense"
            )
        dense = onnx.TensorProto()
        budget = _densify(attribute.sparse_tensor, node.output[0], dense, read, keep, budget)
        names.add(node.output[0])
        attribute.Clear()
        attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
        attribute.t.CopyFrom(dense)
    return frozenset(names)


def _densify(
    sparse: onnx.SparseTensorProto,
    name: str,
    dense: onnx.TensorProto,
    read: Callable[[onnx.TensorProto], Array],
    keep: Callable[[onnx.TensorProto, Array], None],
    budget: int,
) -> int:
    """Fill ``dense``; return what is left of the budget."""
    what = f"sparse tensor {quoted(name)}"
    dims = list(sparse.dims)
    elements = count_elements(dims, what)
    dtype = element_type(sparse.values)
    count = sparse.values.dims[0] if len(sparse.values.dims) == 1 else -1
    if dtype == ir.DataType.STRING or not 0 <= count <= elements:
        raise ModelError(f"{what} has no list of values that fits its shape; export the model again")
    if sparse.indices.data_type != onnx.TensorProto.INT64 or list(sparse.indices.dims) not in (
        [count],
        [count, len(dims)],
    ):
        raise ModelError(f"{what} has indices that do not go with its values; export the model again")
    budget -= size_bytes(dtype, elements)
    if budget < 0:
        raise ModelError(
            f"{what} would take {size_bytes(dtype, elements)} bytes as a dense tensor; all sparse tensors of "
            f"a model may take {MOST_DENSE_BYTES}; store it dense"
        )
    linear = _linear(read(sparse.indices), dims, what)
    values = read(sparse.values)
    array = np.zeros(elements, dtype=values.dtype)
    array[linear] = values
    dense.name = sparse.values.name
    dense.data_type = sparse.values.data_type
    dense.dims.extend(dims)
    dense.doc_string = sparse.values.doc_string
    dense.metadata_props.extend(sparse.values.metadata_props)
    keep(dense, array.reshape(dims))
    return budget


def _linear(indices: Array, dims: list[int], what: str) -> npt.NDArray[np.int64]:
    """Return strictly ascending linear indices.

    Raises:
        ModelError: an index lies outside the tensor, or they are not in order.
    """
    sizes = np.asarray(dims, dtype=np.int64)
    limit = sizes if indices.ndim == 2 else np.prod(sizes, dtype=np.int64)
    if indices.size and bool(np.any((indices < 0) | (indices >= limit))):
        raise ModelError(f"{what} has an index outside its shape; the file is damaged")
    linear = np.asarray(indices, dtype=np.int64)
    if indices.ndim == 2:
        strides = np.append(np.cumprod(sizes[:0:-1])[::-1], 1).astype(np.int64)
        linear = linear @ strides
    if bool(np.any(np.diff(linear) <= 0)):
        raise ModelError(f"{what} has indices that are not in ascending order; export the model again")
    return linear


def stored_nonzeros(array: Array) -> npt.NDArray[np.int64]:
    """Return the linear indices of all elements with a bit set: int64 [nnz]; that includes -0.0."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return np.flatnonzero(flat.view(_BITS[flat.dtype.itemsize])).astype(np.int64, copy=False)


def sparse_bytes(dtype: ir.DataType, nonzeros: int) -> int:
    """Return the bytes of values and int64 indices: less than dense past 66.7 % zeros (fp32), 80 % (fp16)."""
    return size_bytes(dtype, nonzeros) + _INDEX_BYTES * nonzeros
