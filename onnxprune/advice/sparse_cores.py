"""Which layers NVIDIA's sparse tensor cores can run with a 2:4 pattern, by what is documented of them.

Sources, all listed in docs/advise.md: the pattern and its axis are TensorRT's (every four input channels, at
each place of a kernel); the sizes are those that cuSPARSELt takes, as PyTorch checks them
(``torch.sparse.SparseSemiStructuredTensorCUSPARSELT``), and that NVIDIA's own ASP asks of layers before it
prunes them; that TensorRT takes the sparse kernel only where it is the faster one, and that this takes more
than 256 channels on both sides, is what its maintainers say.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.ops.weights import FoundWeight, locate_weights
from onnxprune.types import Skipped

#: The first architecture with sparse tensor cores: Ampere.
LEAST_CAPABILITY = 8.0


@dataclass(frozen=True, slots=True)
class _Tile:
    """What the sizes of a sparse matrix must be multiples of, and the type that the cores compute in."""

    name: str
    outputs: int
    summed: int


#: By type of the stored weight. float32 runs in float16 or in TF32, which TensorRT has no sparse kernels for.
_TILES: Mapping[ir.DataType, _Tile] = {
    ir.DataType.FLOAT: _Tile("float16, once converted", 8, 16),
    ir.DataType.FLOAT16: _Tile("float16", 8, 16),
    ir.DataType.BFLOAT16: _Tile("bfloat16", 8, 16),
    ir.DataType.INT8: _Tile("int8", 32, 32),
}

#: Above this many inputs (times the places of a kernel) and outputs a sparse kernel tends to be the faster.
_LARGE = 256


@dataclass(frozen=True, slots=True)
class SparseLayer:
    """One weight as sparse tensor cores see it.

    Attributes:
        layer: name of the node.
        tensor: name of the stored weight.
        op_type: operator of the node.
        axis: axis of the stored tensor that the pattern goes along: the one that is summed over.
        summed: weights in one sum along it.
        places: of a kernel, over which it sums too.
        outputs: results of one group of the layer.
        runs_as: type that the cores compute in.
        eligible: whether the documented conditions hold.
        likely: whether the sparse kernel is also likely to be the faster one.
        why: what stands in the way.
    """

    layer: str
    tensor: str
    op_type: str
    axis: int
    summed: int
    places: int
    outputs: int
    runs_as: str | None
    eligible: bool
    likely: bool
    why: str | None


def sparse_layers(model: ir.Model) -> tuple[tuple[SparseLayer, ...], tuple[Skipped, ...]]:
    """Return every weight that is multiplied and summed, and what could not be followed."""
    found, skipped = locate_weights(model)
    return tuple(_judge(weight) for weight in found), tuple(skipped)


def compute_capability() -> float | None:
    """Return the compute capability of the first NVIDIA device, None where its driver's tool finds none."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    asked = [tool, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=False)
        return float(done.stdout.splitlines()[0])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None  # a driver without a device, or an old one: nothing is known


def _judge(weight: FoundWeight) -> SparseLayer:
    use = weight.use
    axes = set(range(len(weight.shape))) - {use.summed_axis, use.output_axis}
    places = math.prod(weight.shape[axis] for axis in axes) if "Conv" in use.op_type else 1
    groups = weight.node.attributes.get_int("group", 1)
    outputs = weight.shape[use.output_axis] // (groups if weight.groups == 1 else 1)
    summed = weight.summed_length
    tile = _TILES.get(weight.tensor.dtype)
    why = _why_not(weight, tile, summed, outputs, groups)
    likely = why is None and summed * places > _LARGE and outputs > _LARGE
    return SparseLayer(
        use.consumer, use.tensor, use.op_type, use.summed_axis, summed, places, outputs,
        None if tile is None else tile.name, why is None, likely, why,
    )  # fmt: skip


def _why_not(weight: FoundWeight, tile: _Tile | None, summed: int, outputs: int, groups: int) -> str | None:
    if tile is None:
        return f"sparse tensor cores don't take {weight.tensor.dtype.name.lower()} weights"
    if groups > 1 and summed < tile.summed:
        return (
            f"each of its {groups} groups sums over {summed} channels; the cores take {tile.summed} at once"
        )
    if summed % tile.summed:
        return f"it sums over {summed} channels, which is no multiple of {tile.summed}"
    if outputs % tile.outputs:
        return f"it has {outputs} outputs, which is no multiple of {tile.outputs}"
    return None
