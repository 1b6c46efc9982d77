from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxprune.allocate import masks as masks_of
from onnxprune.allocate.masks import choose_masks
from onnxprune.errors import PlanError
from onnxprune.model.io import load, save
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.ops.weights import find_weights
from onnxprune.rewrite.mask import apply_masks
from onnxprune.scores.weights import WEIGHT_SCORERS
from onnxprune.types import Mask


def model_with(array: Any, *, as_node: bool = False) -> ir.Model:
    tensor = ir.serde.serialize_tensor(ir.tensor(array, name="w"))
    nodes = [helper.make_node("Constant", [], ["w"], value=tensor)] if as_node else []
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["y"], name="layer"))
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [value], [output], [] if as_node else [tensor])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))


def weight_of(model: ir.Model) -> Any:
    (value,) = stored_values(model)["w"]
    return np.asarray(tensor_of(value).numpy())


def bits(array: Any) -> Any:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([np.float32, np.float16, np.float64, ml_dtypes.bfloat16]),
    st.integers(0, 1000),
    st.integers(1, 7),
    st.booleans(),
)
def test_masked_weights_are_plus_zero_and_all_others_keep_their_bits(
    dtype: Any, seed: int, columns: int, as_node: bool
) -> None:
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((5, columns)).astype(dtype)
    weight[0, 0], weight[1, 0], weight[2, 0] = -0.0, np.nan, -np.inf
    kept = generator.random((5, columns)) < 0.5
    model = model_with(weight, as_node=as_node)
    apply_masks(model, {"w": Mask.pack(kept)})
    once = weight_of(model)
    assert once.dtype == weight.dtype
    np.testing.assert_array_equal(bits(once)[kept], bits(weight)[kept])
    assert not bits(once)[~kept].any()
    apply_masks(model, {"w": Mask.pack(kept)})
    np.testing.assert_array_equal(bits(weight_of(model)), bits(once))


def test_the_model_it_was_cloned_from_stays_as_it_is() -> None:
    weight = np.ones((4, 4), np.float32)
    original = model_with(weight)
    copy = original.clone()
    apply_masks(copy, {"w": Mask.pack(np.zeros((4, 4), bool))})
    assert not weight_of(copy).any()
    assert weight_of(original).all()


@pytest.mark.parametrize("external", [False, True])
def test_tensors_of_several_pieces_survive_saving(tmp_path: Path, external: bool) -> None:
    weight = np.random.default_rng(0).standard_normal((1500, 1001)).astype(np.float32)
    kept = np.random.default_rng(1).random(weight.shape) < 0.5
    save(model_with(weight), tmp_path / "a.onnx", external_data=external)
    model = load(tmp_path / "a.onnx")
    apply_masks(model, {"w": Mask.pack(kept)})
    save(model, tmp_path / "b.onnx")
    proto = onnx.load(str(tmp_path / "b.onnx"))  # another reader than the one that wrote it
    np.testing.assert_array_equal(
        numpy_helper.to_array(proto.graph.initializer[0]), np.where(kept, weight, 0)
    )


def test_weights_in_branches_are_masked() -> None:
    def branch(name: str) -> onnx.GraphProto:
        tensor = numpy_helper.from_array(np.ones((4, 4), np.float32), f"{name}_w")
        nodes = [
            helper.make_node("Constant", [], [f"{name}_w"], value=tensor),
            helper.make_node("MatMul", ["x", f"{name}_w"], [f"{name}_y"]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", 1, None)])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("t"), else_branch=branch("e"))
    inputs = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", 1, [2, 4]),
    ]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", 1, None)])
    model = ir.from_proto(helper.make_model(graph))
    apply_masks(model, {"e_w": Mask.pack(np.eye(4, dtype=bool))})
    values = stored_values(model)
    np.testing.assert_array_equal(tensor_of(values["e_w"][0]).numpy(), np.eye(4))
    assert np.asarray(tensor_of(values["t_w"][0]).numpy()).all()


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"w": (4, 3)}, r"mask for 'w' has shape \[4, 3\], the tensor \[4, 4\]"),
        ({"v": (4, 4)}, "the model has no tensor of that name"),
    ],
)
def test_masks_that_do_not_fit_change_nothing(masks: dict[str, tuple[int, ...]], words: str) -> None:
    model = model_with(np.ones((4, 4), np.float32))
    fitting = {"w": Mask.pack(np.zeros((4, 4), bool))} if "w" not in masks else {}
    with pytest.raises(PlanError, match=words):
        apply_masks(
            model, fitting | {name: Mask.pack(np.zeros(shape, bool)) for name, shape in masks.items()}
        )
    assert weight_of(model).all()


def test_integers_are_refused() -> None:
    with pytest.raises(PlanError, match="prune before quantizing"):
        apply_masks(model_with(np.ones((4, 4), np.int8)), {"w": Mask.pack(np.zeros((4, 4), bool))})


@pytest.mark.long
def test_memory_is_bounded_by_the_largest_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load, choose, mask and save a model of 24 tensors: what is allocated at any time is a few tensors."""
    count, size = 24, 1024
    tensor_bytes = size * size * 4
    names = [f"w{number}" for number in range(count)]
    values = [f"h{number}" for number in range(count + 1)]
    nodes = [helper.make_node("MatMul", [values[k], names[k]], [values[k + 1]]) for k in range(count)]
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(generator.standard_normal((size, size), dtype=np.float32), name)
        for name in names
    ]
    ends = [
        helper.make_tensor_value_info(value, TensorProto.FLOAT, ["n", size])
        for value in (values[0], values[-1])
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, ir_version=9), str(tmp_path / "a.onnx"), save_as_external_data=True)
    del weights, graph

    monkeypatch.setattr(masks_of, "_KEPT_BYTES", 8 << 20)  # scores that are kept for a second look
    tracemalloc.start()
    try:
        model = load(tmp_path / "a.onnx")
        uses, _ = find_weights(model)
        scorer = WEIGHT_SCORERS.get("l1")
        masks, _ = choose_masks(
            model, uses, pattern="unstructured", amount=0.5, scorer=scorer, scope="global"
        )
        apply_masks(model, masks)
        save(model, tmp_path / "b.onnx")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    kept_bytes = masks_of._KEPT_BYTES + count * tensor_bytes // 32
    assert peak_bytes < kept_bytes + 10 * tensor_bytes  # pieces of 4 MiB, and what is computed from them
    assert len(masks) == count
