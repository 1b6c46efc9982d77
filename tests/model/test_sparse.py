from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import model_files
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.model.io import SPARSE, load, save
from onnxprune.model.places import places


def thinned(array: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Set a share of the elements to zero."""
    chosen = np.random.default_rng(seed).permutation(array.size)[: round(share * array.size)]
    result = array.copy()
    result.reshape(-1)[chosen] = 0
    return result


def sparse(name: str, array: np.ndarray, by_axis: bool = False) -> onnx.SparseTensorProto:
    indices = np.argwhere(array) if by_axis else np.flatnonzero(array)
    proto = onnx.SparseTensorProto(dims=array.shape)
    proto.values.CopyFrom(model_files.tensor(name, array[array != 0]))
    proto.indices.CopyFrom(model_files.tensor("", indices.astype(np.int64)))
    return proto


W = thinned(model_files.random(24, 24), 0.8)
V = thinned(model_files.random(24, 24, seed=1), 0.9)


def sparse_model(entry: onnx.SparseTensorProto | None = None) -> onnx.ModelProto:
    """x @ w0 @ w1 @ c, where w0 and c are sparse."""
    proto = model_files.mlp(2)
    del proto.graph.initializer[0]
    proto.graph.sparse_initializer.append(entry or sparse("w0", W))
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], sparse_value=sparse("", V)))
    proto.graph.node.append(helper.make_node("MatMul", ["h1", "c"], ["y"]))
    proto.graph.output[0].name = "y"
    return proto


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {place.name: place.tensor.numpy() for place in places(model)}


@pytest.mark.parametrize("by_axis", [False, True])
@pytest.mark.parametrize("external", [False, True])
def test_dense_inside_sparse_outside(tmp_path: Path, by_axis: bool, external: bool) -> None:
    proto = sparse_model(sparse("w0", W, by_axis))
    if external:
        entry = proto.graph.sparse_initializer[0]
        model_files.move_out(entry.values, tmp_path, "s.bin")
        model_files.move_out(entry.indices, tmp_path, "s.bin")
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    found = arrays(model)
    assert np.array_equal(found["w0"], W)
    assert np.array_equal(found["c"], V)
    assert model.meta[SPARSE] == {"w0", "c"}
    result = onnx.load(save(model, tmp_path / "out.onnx")[0])
    expected = sparse_model()
    assert model_files.normalized(result) == model_files.normalized(expected)
    dense = onnx.load(save(model, tmp_path / "dense.onnx", sparse_storage=False)[0])
    assert not dense.graph.sparse_initializer
    assert {one.name for one in dense.graph.initializer} == {"w0", "w1"}


@pytest.mark.parametrize("shape", [(7,), (5, 7), (3, 5, 7), (2, 3, 5, 7)])
def test_indices_by_axis(shape: tuple[int, ...], tmp_path: Path) -> None:
    array = thinned(model_files.random(*shape), 0.6)
    proto = model_files.mlp(1)
    proto.graph.sparse_initializer.append(sparse("s", array, by_axis=True))
    assert np.array_equal(arrays(load(model_files.write(proto, tmp_path / "m.onnx")))["s"], array)


def test_in_a_subgraph(tmp_path: Path) -> None:
    proto = model_files.everything()
    branch = proto.graph.node[4].attribute[0].g
    array = thinned(model_files.random(20, 20), 0.9)
    del branch.initializer[0]
    branch.sparse_initializer.append(sparse(f"{branch.name}_w", array))
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    assert np.array_equal(arrays(model)[f"{branch.name}_w"], array)
    result = onnx.load(save(model, tmp_path / "out.onnx")[0])
    assert model_files.normalized(result) == model_files.normalized(proto)


def test_what_was_sparse_follows_its_new_weights(tmp_path: Path) -> None:
    model = load(model_files.write(sparse_model(), tmp_path / "m.onnx"))
    array = np.zeros((3, 2), np.float32)
    array[1, 1] = -0.0
    array[2, 0] = np.nan
    model.graph.initializers["w0"].const_value = ir.tensor(array)
    entry = onnx.load(save(model, tmp_path / "out.onnx")[0]).graph.sparse_initializer[0]
    assert list(entry.dims) == [3, 2]
    assert list(onnx.numpy_helper.to_array(entry.indices)) == [3, 4], "-0.0 is not +0.0"
    again = arrays(load(tmp_path / "out.onnx"))["w0"]
    assert again.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    ("dtype", "share", "becomes_sparse"),
    [
        (np.float32, 0.66, False),
        (np.float32, 0.67, True),
        (np.float16, 0.79, False),
        (np.float16, 0.81, True),
        (np.float64, 0.49, False),
        (np.float64, 0.51, True),
        (np.int8, 0.99, False),
    ],
)
def test_break_even(dtype: type, share: float, becomes_sparse: bool, tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    array = thinned(model_files.random(60, 60), share).astype(dtype)
    proto.graph.initializer.append(model_files.tensor("other", array))
    proto.graph.node.append(helper.make_node("Constant", [], ["c"], value=model_files.tensor("", array)))
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    for name, option in (("all.onnx", True), ("none.onnx", None)):
        result = onnx.load(save(model, tmp_path / name, sparse_storage=option)[0])
        expected = ["other"] if becomes_sparse and option else []
        assert [entry.values.name for entry in result.graph.sparse_initializer] == expected
        kind = "sparse_value" if expected else "value"
        assert result.graph.node[-1].attribute[0].name == kind
        again = arrays(load(tmp_path / name))
        assert np.array_equal(again["other"], array)
        assert np.array_equal(again["c"], array)
    sizes = [(tmp_path / name).stat().st_size for name in ("all.onnx", "none.onnx")]
    assert (sizes[0] < sizes[1]) == becomes_sparse


def test_the_interface_stays_dense(tmp_path: Path) -> None:
    proto = model_files.mlp(1, 40)
    array = thinned(model_files.random(40, 40), 0.95)
    proto.graph.initializer.append(model_files.tensor("given", array))
    proto.graph.initializer.append(model_files.tensor("returned", array))
    proto.graph.input.append(model_files.info("given", 40, 40))
    proto.graph.output.append(model_files.info("returned", 40, 40))
    model = load(model_files.write(proto, tmp_path / "m.onnx"))
    assert not onnx.load(save(model, tmp_path / "out.onnx", sparse_storage=True)[0]).graph.sparse_initializer


def test_sparse_beside_external_data(tmp_path: Path) -> None:
    model = load(model_files.write(sparse_model(), tmp_path / "m.onnx"))
    files = save(model, tmp_path / "out.onnx", external_data=True)
    assert len(files) == 2
    assert files[1].stat().st_size == 24 * 24 * 4, "w1 alone; sparse tensors stay in the model"
    again = arrays(load(files[0]))
    assert all(np.array_equal(again[name], array) for name, array in arrays(model).items())


def test_onnx_runtime_reads_what_is_written(tmp_path: Path) -> None:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    runtime = pytest.importorskip("onnxruntime")
    model = load(model_files.write(sparse_model(), tmp_path / "m.onnx"))
    x = model_files.random(3, 24)
    weights = arrays(model)
    expected = x @ weights["w0"] @ weights["w1"] @ weights["c"]
    for index, (external, stored) in enumerate(((False, None), (True, None), (True, False), (False, True))):
        path = save(model, tmp_path / f"{index}.onnx", external_data=external, sparse_storage=stored)[0]
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)


def indices(*values: int, dims: tuple[int, ...] | None = None) -> Callable[[onnx.SparseTensorProto], None]:
    array = np.asarray(values, np.int64).reshape(dims or len(values))
    return lambda entry: entry.indices.CopyFrom(model_files.tensor("", array))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (indices(0, 6), "outside its shape"),
        (indices(0, 2**62), "outside its shape"),
        (indices(-1, 0), "outside its shape"),
        (indices(0, 0, 0, 3, dims=(2, 2)), "outside its shape"),
        (indices(0, 2, 1, 0, dims=(2, 2)), "loads"),
        (indices(1, 0, 0, 0, dims=(2, 2)), "ascending"),
        (indices(2, 1), "ascending"),
        (indices(1, 1), "ascending"),
        (indices(1), "do not go with its values"),
        (indices(1, 2, 3, dims=(1, 3)), "do not go with its values"),
        (lambda e: e.indices.CopyFrom(model_files.tensor("", np.zeros(2, np.float32))), "do not go with"),
        (
            lambda e: e.indices.CopyFrom(model_files.tensor("", np.arange(2, dtype=np.int32))),
            "do not go with",
        ),
        (lambda e: e.values.dims.__setitem__(0, 1000), "needs? 4000|need 4000"),
        (lambda e: e.values.dims.append(1), "no list of values"),
        (lambda e: e.dims.__setitem__(0, -2), "negative dimension"),
        (lambda e: e.dims.__setitem__(0, 2**62), "impossible dimensions"),
        (lambda e: e.dims.__setitem__(0, 2**34), "all sparse tensors of a model may take"),
        (lambda e: e.dims.__setitem__(0, 0), "no list of values"),
        (lambda e: e.values.ClearField("name"), "without a name"),
    ],
)
def test_malformed(change: Callable[[onnx.SparseTensorProto], None], complaint: str, tmp_path: Path) -> None:
    entry = sparse("s", np.array([[0, 1, 0], [0, 0, 2]], np.float32))
    change(entry)
    proto = model_files.mlp(1)
    proto.graph.sparse_initializer.append(entry)
    path = model_files.write(proto, tmp_path / "m.onnx")
    if complaint == "loads":
        assert load(path).graph.initializers["s"].const_value is not None
        return
    with pytest.raises(ModelError, match=complaint):
        load(path)


def test_sparse_attributes_of_other_nodes(tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    proto.graph.node[0].attribute.append(helper.make_attribute("table", sparse("s", W)))
    with pytest.raises(ModelError, match="supported in Constant nodes alone"):
        load(model_files.write(proto, tmp_path / "m.onnx"))


def test_many_small_declarations_share_one_budget(tmp_path: Path) -> None:
    proto = model_files.mlp(1)
    for index in range(5):
        entry = proto.graph.sparse_initializer.add(dims=[1 << 27])
        entry.values.CopyFrom(model_files.tensor(f"s{index}", np.zeros(0, np.float32)))
        entry.indices.CopyFrom(model_files.tensor("", np.zeros(0, np.int64)))
    with pytest.raises(ModelError, match="'s4' would take"):
        load(model_files.write(proto, tmp_path / "m.onnx"))
