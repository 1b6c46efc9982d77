"""Weights that are rounded when they are written are, bit for bit, those that tools round at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.model import streaming
from onnxprune.model.external import FileTensor
from onnxprune.model.io import load, save
from onnxprune.model.streaming import MadeTensor
from onnxprune.quantization.forms import in_float16, in_four_bits, with_stored_int8
from onnxprune.quantization.layers import find_layers
from onnxprune.quantization.preparing import prepared


def written(folder: Path, *, external: bool, tame: bool = False) -> Path:
    """Write a model with matrices of odd sizes, numbers that float16 lacks, zeros, and a tied weight."""
    generator = np.random.default_rng(0)
    arrays = {
        "a": generator.standard_normal((132, 200)).astype(np.float32),
        "b": generator.standard_normal((200, 132)).astype(np.float32),
        "c": generator.standard_normal((12, 132, 1, 3)).astype(np.float32),
        "range": np.float32([3.0]),
    }
    for array in arrays.values():
        array *= 0.05  # so that float16 can hold what comes out
    arrays["a"][::2] = 0
    if not tame:
        arrays["a"][1, :6] = [1e6, -1e6, 1e-9, -1e-9, 65519, 5.9e-8]
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], "first"),
        helper.make_node("MatMul", ["h", "b"], ["i"], "second"),
        helper.make_node("MatMul", ["i", "a"], ["j"], "tied"),
        helper.make_node("MatMul", ["j", "b"], ["k"], "last"),
        helper.make_node("Reshape", ["k", "shape"], ["l"], "reshape"),
        helper.make_node("Conv", ["l", "c"], ["m"], "conv", pads=[0, 1, 0, 1]),
        helper.make_node("Max", ["m", "range"], ["y"], "blocked"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 132])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 12, 1, 7])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()]
        + [numpy_helper.from_array(np.int64([1, 132, 1, 7]), "shape")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / ("external.onnx" if external else "inline.onnx")
    save(ir.from_proto(proto), path, external_data=external)
    return path


def bytes_of(model: ir.Model) -> dict[str, tuple[object, ...]]:
    return {
        name: (value.const_value.dtype, tuple(value.const_value.shape), value.const_value.tobytes())
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }


@pytest.mark.parametrize("form", ["int4", "float16", "int8"])
def test_models_in_files_become_what_models_in_memory_become(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 1 << 12)  # so that there are several
    results = []
    for external in (False, True):
        work = prepared(load(written(tmp_path, external=external)))
        layers = find_layers(work)[0]
        names = [layer.name for layer in layers if layer.op_type == "MatMul"]
        if form == "int4":
            results.append(in_four_bits(work, names, block_size=32))
        elif form == "float16":
            results.append(in_float16(work, []))
        else:
            results.append(with_stored_int8(work, layers))
    in_memory, streamed = results
    kinds = [type(value.const_value) for value in streamed.graph.initializers.values()]
    assert MadeTensor in kinds
    assert MadeTensor not in [type(value.const_value) for value in in_memory.graph.initializers.values()]
    assert bytes_of(streamed) == bytes_of(in_memory)
    assert [str(node) for node in streamed.graph] == [str(node) for node in in_memory.graph]


def test_four_bits_are_those_of_the_runtimes_own_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PIECE_BYTES", 1 << 12)
    quantizer = pytest.importorskip("onnxruntime.quantization.matmul_nbits_quantizer")
    path = written(tmp_path, external=False)
    config = quantizer.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True)
    tool = quantizer.DefaultWeightOnlyQuantizer(config)
    work = prepared(load(path))
    made = in_four_bits(work, ["first", "second"], block_size=32)
    for node in made.graph:
        if node.op_type != "MatMulNBits":
            continue
        rows, columns = node.attributes["K"].as_int(), node.attributes["N"].as_int()
        name = "a" if columns == 200 else "b"
        packed, scales, _ = tool.qbits_block_quant(work.graph.initializers[name].const_value.numpy())
        assert (rows, columns) == work.graph.initializers[name].const_value.shape
        np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), packed)
        np.testing.assert_array_equal(node.inputs[2].const_value.numpy(), scales)


def test_halves_are_those_of_the_runtimes_own_converter(tmp_path: Path) -> None:
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    expected = float16.convert_float_to_float16(
        onnx.load(written(tmp_path, external=False)), keep_io_types=True, node_block_list=["conv"]
    )
    made = in_float16(prepared(load(written(tmp_path, external=True))), ["conv"])
    wanted = {tensor.name: numpy_helper.to_array(tensor) for tensor in expected.graph.initializer}
    assert isinstance(made.graph.initializers["c"].const_value, FileTensor)  # stays in float, where it is
    for name in ("a", "b", "c"):
        array = made.graph.initializers[name].const_value.numpy()
        assert array.dtype == wanted[name].dtype
        np.testing.assert_array_equal(array, wanted[name])


@pytest.mark.parametrize("form", ["int4", "float16"])
def test_the_written_file_is_verified(tmp_path: Path, form: str) -> None:
    path = written(tmp_path, external=True, tame=True)
    result = onnxprune.quantize(path, form=form)
    report = onnxprune.save_quantized(result, tmp_path / "out.onnx", against=path)
    assert report.passed
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 1  # as it was
