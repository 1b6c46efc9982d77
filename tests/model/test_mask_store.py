"""Masks that wait in a file are masks like all others."""

from __future__ import annotations

import pickle

import numpy as np
import onnx_ir as ir
import pytest
import safetensors.numpy

from onnxprune.model import mask_store
from onnxprune.model.mask_store import MaskStore
from onnxprune.plans.files import _write_masks
from onnxprune.types import Mask


def masks(count: int) -> dict[str, Mask]:
    generator = np.random.default_rng(0)
    return {f"w{n} ü": Mask.pack(generator.random((n + 1, 13)) < 0.5) for n in range(count)}


def kept_in(store: MaskStore, given: dict[str, Mask]) -> dict[str, Mask]:
    return {name: store.keep(mask) for name, mask in given.items()}


def test_masks_in_the_file_are_those_that_were_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_store, "HELD_BYTES", 20)
    given = masks(30)
    kept = kept_in(MaskStore(), given)
    assert [type(mask) is Mask for mask in kept.values()].count(True) < 10
    for name, mask in given.items():
        assert kept[name].shape == mask.shape
        assert (kept[name].kept, kept[name].size) == (mask.kept, mask.size)
        np.testing.assert_array_equal(kept[name].bits, mask.bits)
        np.testing.assert_array_equal(kept[name].unpack(), mask.unpack())
        copy = pickle.loads(pickle.dumps(kept[name]))  # noqa: S301 # our own
        assert type(copy) is Mask
        np.testing.assert_array_equal(copy.bits, mask.bits)


def test_few_masks_stay_in_memory() -> None:
    mask = masks(1).popitem()[1]
    assert MaskStore().keep(mask) is mask


def test_masks_are_written_as_safetensors_writes_them(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = masks(12)
    monkeypatch.setattr(mask_store, "HELD_BYTES", 0)
    with (tmp_path / "m.safetensors").open("wb") as stream:
        _write_masks(kept_in(MaskStore(), given), stream)
    expected = safetensors.numpy.save({name: mask.bits for name, mask in given.items()})
    assert (tmp_path / "m.safetensors").read_bytes() == expected


def test_a_model_is_masked_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxprune

    generator = np.random.default_rng(1)
    arrays = generator.standard_normal((2, 16, 16)).astype(np.float32)
    values = [
        ir.Value(name=name, shape=t.shape, type=ir.TensorType(t.dtype), const_value=t)
        for name, t in zip("vw", map(ir.tensor, arrays), strict=True)
    ]
    x = ir.Value(name="x", shape=ir.Shape([1, 16]), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.node("MatMul", [x, values[0]], name="a")
    second = ir.node("MatMul", [first.outputs[0], values[1]], name="b")
    second.outputs[0].name = "y"
    second.outputs[0].type, second.outputs[0].shape = x.type, x.shape
    graph = ir.Graph([x], second.outputs, nodes=[first, second], initializers=values, opset_imports={"": 17})
    model = ir.Model(graph, ir_version=8)
    results = []
    for held in (1 << 20, 0):
        monkeypatch.setattr(mask_store, "HELD_BYTES", held)
        for pattern, amount in (("2:4", None), ("unstructured", 0.5), ("block:4x4", 0.5)):
            pruned = onnxprune.prune(model, pattern=pattern, amount=amount)
            results.append([v.const_value.tobytes() for v in pruned.model.graph.initializers.values()])
    assert results[:3] == results[3:]
