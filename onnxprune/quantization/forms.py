"""The forms that a prepared model can take, as short as can be.

Integers that compute are made by ONNX Runtime's own tools, which hold all weights in memory. Where weights
are only stored in fewer bits, they stay in their file until the model is written.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from onnxprune.machine import processor
from onnxprune.model.io import EXTERNAL, SOURCE, load, save
from onnxprune.model.serialize import recall, remember
from onnxprune.model.skeleton import without_tensors
from onnxprune.model.stored import stored_values
from onnxprune.quantization.compact import compact
from onnxprune.quantization.layers import Layer, with_followers
from onnxprune.quantization.preparing import restore_interface
from onnxprune.quantization.products import InFourBits, InIntegers, Product, replace_products
from onnxprune.quantization.stored_weights import store_in_int8
from onnxprune.quantization.streamed_weights import in_halves
from onnxprune.runtime.quantizer import convert_float16, quantize_static

Feeds = Mapping[str, npt.NDArray[Any]]


def in_int8(
    work: ir.Model,
    layers: Sequence[str],
    feeds: Sequence[Feeds],
    *,
    calibration: str = "minmax",
    per_channel: bool = True,
    ranges: Path | None = None,
    timeout_seconds: float | None = None,
) -> ir.Model:
    """Return a model whose layers compute in int8, and the nodes between them too.

    Args:
        work: from `onnxprune.quantization.preparing.prepared`; not changed.
        layers: names of the nodes that become int8.
        feeds: inputs to take the ranges of activations from.
        calibration: how: a key of `onnxprune.runtime.quantizer.CALIBRATIONS`.
        per_channel: a scale for each output channel of a weight, not one for all of it.
        ranges: a file that keeps the ranges of this model for a second run.
        timeout_seconds: after which the work is stopped; None for no limit.

    Raises:
        RuntimeFailure: ONNX Runtime can't quantize the model, or it takes too long.
    """
    nodes = with_followers(work, layers)

    def make(plain: Path, out: Path) -> None:
        quantize_static(
            plain, feeds, out, nodes=nodes, calibration=calibration, per_channel=per_channel,
            reduced_range=saturates(), ranges=ranges, timeout_seconds=timeout_seconds,
        )  # fmt: skip

    return _made(work, make)


def in_dynamic(work: ir.Model, layers: Sequence[str], *, per_channel: bool = True) -> ir.Model:
    """Return a model whose matrix products find the range of their input in each run; see `in_int8`."""
    return _of_products(work, layers, InIntegers(per_channel))


def in_four_bits(work: ir.Model, layers: Sequence[str], *, block_size: int) -> ir.Model:
    """Return a model whose matrix products keep weights in 4 bits, in blocks of a column; see `in_int8`.

    As ONNX Runtime's MatMulNBitsQuantizer writes it, symmetric.
    """
    return _of_products(work, layers, InFourBits(block_size))


def in_float16(work: ir.Model, keep_float: Sequence[str]) -> ir.Model:
    """Return a model that computes in float16 between inputs and outputs of the same types; see `in_int8`.

    ONNX Runtime's converter sees the graph alone; weights are converted when they are written.
    """
    proto, tensors = without_tensors(work)
    with tempfile.TemporaryDirectory(prefix="onnxprune-quantize-") as folder:
        plain, out = Path(folder, "plain.onnx"), Path(folder, "made.onnx")
        plain.write_bytes(proto.SerializeToString())
        convert_float16(plain, out, keep_float=keep_float)
        made = ir.from_proto(onnx.load(out, load_external_data=False))
    for name, value in made.graph.initializers.items():
        declared, tensor = value.const_value, tensors.get(name)
        if isinstance(declared, ir.ExternalTensor) and tensor is not None:
            value.const_value = tensor if declared.dtype == tensor.dtype else in_halves(tensor)
    for note in (SOURCE, EXTERNAL):
        remember(made, note, recall(work, note))
    made = compact(made, _kept_names(work))
    restore_interface(made, work)
    return made


def with_stored_int8(work: ir.Model, layers: Sequence[Layer], *, per_channel: bool = True) -> ir.Model:
    """Return a model that computes in float, with the weights of layers stored in int8; see `in_int8`."""
    copy = work.clone()
    store_in_int8(copy, layers, per_channel=per_channel)
    made = compact(copy, _kept_names(work))
    restore_interface(made, work)
    return made


def store_in(made: ir.Model, work: ir.Model, layers: Sequence[Layer], *, per_channel: bool) -> ir.Model:
    """Store the weights of layers of a quantized model that compute in float in int8, in place; return it."""
    if layers and store_in_int8(made, layers, per_channel=per_channel):
        return compact(made, _kept_names(work))
    return made


def saturates() -> bool:
    """Return whether 8-bit products can overflow on this processor: x86 with AVX2, without VNNI."""
    flags = processor().partition("flags: ")[2].split(";")[0].split()
    return bool(flags) and "avx2" in flags and not {"avx_vnni", "avx512_vnni"} & set(flags)


def _kept_names(work: ir.Model) -> frozenset[str]:
    return frozenset([*stored_values(work), *(str(node.name) for node in work.graph)])


def _of_products(work: ir.Model, layers: Sequence[str], form: Product) -> ir.Model:
    """Return a model whose matrix products have another form, in its shortest one."""
    made = work.clone()
    replace_products(made.graph, layers, form)
    passes.RemoveUnusedNodesPass()(made)
    made = compact(made, _kept_names(work))
    restore_interface(made, work)
    return made


def _made(work: ir.Model, make: Callable[[Path, Path], None]) -> ir.Model:
    """Write a model, let a tool make another file of it, and return that in memory, in its shortest form."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-quantize-") as folder:
        plain, out = Path(folder, "plain.onnx"), Path(folder, "made.onnx")
        save(work, plain, sparse_storage=False)
        make(plain, out)
        made = in_memory(compact(load(out), _kept_names(work)))
    restore_interface(made, work)
    return made


def in_memory(model: ir.Model) -> ir.Model:
    """Take tensors out of files that are about to go, in place."""
    for values in stored_values(model).values():
        for value in values:
            tensor = value.const_value
            if tensor is not None and not isinstance(tensor, ir.Tensor):
                value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=value.name)
    return model
