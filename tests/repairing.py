"""Cut and masked models beside their originals, as the repair takes them, and data for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from cutting import some_channels

from onnxprune.analyze import analyze
from onnxprune.data import Dataset
from onnxprune.model.prepare import prepare
from onnxprune.ops.kept import Kept
from onnxprune.ops.sums import Sums
from onnxprune.proving import make_cut
from onnxprune.rewrite.mask import apply_masks
from onnxprune.runtime import open_session
from onnxprune.types import BoolArray, IntArray, Mask


class Pair(NamedTuple):
    """A model and what became of it.

    Attributes:
        original: the prepared copy.
        pruned: made from it.
        kept: which positions of its values are left, by name.
    """

    original: ir.Model
    pruned: ir.Model
    kept: _KeptByName


class _KeptByName:
    def __init__(self, model: ir.Model, kept: Kept | None) -> None:
        self.values = {str(o.name): o for node in model.graph for o in node.outputs}
        self.kept = kept

    def __call__(self, name: str) -> Mapping[int, BoolArray]:
        return {} if self.kept is None else self.kept.masks(self.values[name])


def cut_pair(
    proto: onnx.ModelProto,
    *,
    share: float = 0.4,
    seed: int = 0,
    removed: Mapping[str, IntArray] | None = None,
    inexact: bool = False,
) -> Pair:
    """Cut random channels of all groups, or those that are given."""
    analysis = analyze(ir.from_proto(proto), allow_inexact=inexact)
    chosen = some_channels(analysis, seed, share) if removed is None else removed
    made = make_cut(analysis, Sums(analysis.model.graph, analysis.channels), chosen)
    kept = Kept(analysis.channels, made.gone)
    return Pair(analysis.model, made.pruned, _KeptByName(analysis.model, kept))


def masked_pair(proto: onnx.ModelProto, masks: Mapping[str, Mask]) -> Pair:
    """Set weights to zero."""
    work, _ = prepare(ir.from_proto(proto))
    pruned = work.clone()
    apply_masks(pruned, masks)
    return Pair(work, pruned, _KeptByName(work, None))


def random_masks(
    proto: onnx.ModelProto, names: list[str], keep: float = 0.5, seed: int = 0
) -> dict[str, Mask]:
    """Keep a random share of some weights."""
    random = np.random.default_rng(seed)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in proto.graph.initializer}
    return {name: Mask.pack(random.random(shapes[name]) < keep) for name in names}


def samples_for(model: ir.Model, count: int = 40, seed: int = 0, dtype: type = np.float32) -> Dataset:
    """Return random inputs; channels differ in scale and depend on each other."""
    random = np.random.default_rng(seed)
    arrays = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        sizes = [size if isinstance(size, int) else 5 for size in value.shape[1:]]
        causes = random.standard_normal((count, 3)) @ random.standard_normal((3, int(np.prod(sizes))))
        array = causes + 0.5 * random.standard_normal(causes.shape)
        arrays[str(value.name)] = array.reshape(count, *sizes).astype(dtype)
    return Dataset.from_arrays(arrays)


def outputs(model: ir.Model, data: Dataset) -> list[np.ndarray]:
    """Return what a model computes from all samples at once."""
    return list(open_session(model).run(dict(data.arrays)).values())


def stored(model: ir.Model) -> dict[str, np.ndarray]:
    """Return the weights of a model."""
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
