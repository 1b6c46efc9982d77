"""Model files for the tests of reading and writing: one with everything in it; what may differ afterwards."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

FLOAT = TensorProto.FLOAT


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def raw(name: str, data_type: int, dims: list[int], data: bytes) -> TensorProto:
    return TensorProto(name=name, data_type=data_type, dims=dims, raw_data=data)


def tensor(name: str, array: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(array, name)


def info(name: str, *dims: int | str | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, FLOAT, list(dims))


def mlp(weights: int = 2, width: int = 24, seed: int = 0) -> onnx.ModelProto:
    """A chain of MatMuls; every weight takes ``4 * width ** 2`` bytes."""
    tensors = [tensor(f"w{i}", random(width, width, seed=seed + i)) for i in range(weights)]
    nodes = [
        helper.make_node("MatMul", ["x" if i == 0 else f"h{i - 1}", f"w{i}"], [f"h{i}"], name=f"fc{i}")
        for i in range(weights)
    ]
    graph = helper.make_graph(
        nodes, "mlp", [info("x", "n", width)], [info(f"h{weights - 1}", "n", width)], tensors
    )
    return model(graph)


def model(graph: onnx.GraphProto, **more: object) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10, **more)


def write(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def move_out(proto: TensorProto, folder: Path, location: str, before: bytes = b"") -> None:
    """Append a tensor's data to a file and refer to it."""
    path = folder / location
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(before)
        offset = stream.tell()
        stream.write(proto.raw_data)
    refer(proto, location=location, offset=offset, length=len(proto.raw_data))
    proto.ClearField("raw_data")


def refer(proto: TensorProto, **entries: object) -> None:
    """Make a tensor external, with these entries and no others."""
    proto.data_location = TensorProto.EXTERNAL
    del proto.external_data[:]
    for key, value in entries.items():
        proto.external_data.add(key=key, value=str(value))


def typed(name: str, data_type: int, dims: list[int], field: str, values: list[float | bytes]) -> TensorProto:
    proto = TensorProto(name=name, data_type=data_type, dims=dims)
    getattr(proto, field).extend(values)
    return proto


def tensors_of_every_type() -> Iterator[TensorProto]:
    """Small and large tensors of all element types, as raw bytes and as lists of numbers."""
    rng = np.random.default_rng(5)
    wide = [
        np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16,
        np.uint32, np.uint64, np.bool_, np.complex64, np.complex128,
        ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu,
    ]  # fmt: skip
    for kind in wide:
        dtype = np.dtype(kind)
        code = helper.np_dtype_to_tensor_dtype(dtype)
        for elements in (6, 1500):
            bits = rng.integers(0, 2 if dtype == np.bool_ else 256, elements * dtype.itemsize, dtype=np.uint8)
            yield raw(f"{dtype.name}_{elements}", code, [3, elements // 3], bits.tobytes())
    for code, bits_each in (
        (TensorProto.INT4, 4), (TensorProto.UINT4, 4), (TensorProto.FLOAT4E2M1, 4), (TensorProto.INT2, 2),
        (TensorProto.UINT2, 2), (TensorProto.FLOAT6E2M3, 6),
    ):  # fmt: skip
        for elements in (7, 5001):  # the last byte is not full
            size = -(-elements * bits_each // 8)
            packed = rng.integers(0, 1 << (elements * bits_each - 8 * (size - 1)), size, dtype=np.uint8)
            yield raw(f"packed{code}_{elements}", code, [elements], packed.tobytes())
    for elements in (5, 700):
        numbers = list(range(elements))
        yield typed(f"floats_{elements}", FLOAT, [elements], "float_data", [n / 7 for n in numbers])
        yield typed(
            f"doubles_{elements}", TensorProto.DOUBLE, [elements], "double_data", [n / 7 for n in numbers]
        )
        yield typed(f"longs_{elements}", TensorProto.INT64, [elements], "int64_data", numbers)
        yield typed(f"halves_{elements}", TensorProto.FLOAT16, [elements], "int32_data", numbers)
        yield typed(
            f"nibbles_{elements}", TensorProto.INT4, [2 * elements], "int32_data", [n % 256 for n in numbers]
        )
        yield typed(f"uints_{elements}", TensorProto.UINT32, [elements], "uint64_data", numbers)
        yield typed(
            f"complex_{elements}", TensorProto.COMPLEX64, [elements], "float_data", [*numbers, *numbers]
        )
        yield typed(
            f"strings_{elements}",
            TensorProto.STRING,
            [elements],
            "string_data",
            [b"\xff%d" % n for n in numbers],
        )
    yield raw("scalar", FLOAT, [], struct.pack("<f", 1.5))
    yield raw("nothing", FLOAT, [0, 3], b"")
    yield typed("nothing_typed", FLOAT, [3, 0], "float_data", [])


def _metadata(proto: object, **entries: str) -> None:
    for key, value in entries.items():
        proto.metadata_props.add(key=key, value=value)  # type: ignore[attr-defined]


def branch(name: str, output: str) -> onnx.GraphProto:
    """A subgraph with an initializer and a Constant of its own, using a value from outside."""
    constant = helper.make_node("Constant", [], [f"{name}_c"], value=tensor("", random(20, 20, seed=8)))
    nodes = [
        constant,
        helper.make_node("MatMul", ["h", f"{name}_w"], [f"{name}_m"]),
        helper.make_node("MatMul", [f"{name}_m", f"{name}_c"], [output]),
    ]
    graph = helper.make_graph(nodes, name, [], [info(output, "n", 20)], [tensor(f"{name}_w", random(20, 20))])
    graph.value_info.append(info(f"{name}_m", "n", 20))
    graph.initializer[0].doc_string = "of a branch"
    _metadata(graph, where=name)
    return graph


def everything(extra: list[TensorProto] | None = None) -> onnx.ModelProto:
    """A model with functions, subgraphs, metadata, annotations, opsets and odd but valid details."""
    function = helper.make_function(
        "local", "Scale", ["a"], ["b"],
        [
            helper.make_node("Constant", [], ["k"], value=tensor("", random(20, 20, seed=3))),
            helper.make_node("MatMul", ["a", "k"], ["m"]),
            helper.make_node("LeakyRelu", ["m"], ["b"]),
        ],
        [helper.make_opsetid("", 21)], ["alpha"],
    )  # fmt: skip
    reference = function.node[2].attribute.add(
        name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT
    )
    reference.doc_string = "taken from the caller"
    function.attribute_proto.append(helper.make_attribute("beta", 2.0))
    function.value_info.append(info("m", "n", 20))
    function.doc_string = "a function"
    _metadata(function, kind="local")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first", doc_string="says what it is"),
        helper.make_node("Scale", ["h"], ["s"], domain="local", alpha=0.25),
        helper.make_node("ReduceMax", ["s", ""], ["peak"], keepdims=0),
        helper.make_node("Greater", ["peak", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["y"], then_branch=branch("yes", "t"), else_branch=branch("no", "e")
        ),
        helper.make_node("Split", ["y"], ["left", ""], axis=1, num_outputs=2),
        helper.make_node("Dropout", ["left"], ["z", ""]),
        helper.make_node("Constant", [], ["numbers"], value_floats=[1.0, 2.5]),
        helper.make_node("Constant", [], ["text"], value_string="größe"),
        helper.make_node(
            "Custom", ["z"], ["q"], domain="other", table=tensor("t", random(20, 20)), many=[1, 2]
        ),
    ]  # fmt: skip
    several = nodes[-1].attribute.add(name="several", type=onnx.AttributeProto.TENSORS)
    several.tensors.extend([tensor("p", random(20, 20, seed=1)), tensor("q", random(2, seed=2))])
    kind = nodes[-1].attribute.add(name="kind", type=onnx.AttributeProto.TYPE_PROTO)
    kind.tp.CopyFrom(helper.make_tensor_type_proto(FLOAT, ["n", 3]))
    _metadata(nodes[0], scope="encoder", line="12")
    tensors = [
        tensor("w", random(20, 20)),
        tensor("zero", np.float32(0)),
        tensor("default", random(4)),
        *(extra or []),
    ]
    _metadata(tensors[0], origin="training")
    _metadata(tensors[1], origin="by hand")
    inputs = [info("x", "n", 20), info("default", 4)]
    inputs[0].doc_string = "what goes in"
    inputs[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    _metadata(inputs[0], unit="volts")
    outputs = [info("z", None, 10), info("q")]
    graph = helper.make_graph(nodes, "main", inputs, outputs, tensors, doc_string="graph doc")
    graph.value_info.extend([info("h", "n", 20), info("zero"), info("s")])
    _metadata(graph.value_info[0], note="hidden")
    _metadata(graph, quality="high")
    annotation = graph.quantization_annotation.add(tensor_name="h")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="zero")
    proto = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[
            helper.make_opsetid(*one) for one in (("", 21), ("local", 1), ("other", 3), ("unused", 7))
        ],
        ir_version=10,
        producer_name="tests",
        producer_version="0",
        domain="org.example",
        model_version=3,
        doc_string="all of it",
    )
    _metadata(proto, author="nobody", licence="none")
    return proto


def normalized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Apply to a copy what ``onnxprune.model.io`` says a round trip may change (dense, inline models)."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    _normalize(copy)
    return copy


def _normalize(message: object) -> None:
    if isinstance(message, TensorProto):
        _normalize_tensor(message)
    if isinstance(message, onnx.NodeProto):
        while message.output and not message.output[-1]:
            message.output.pop()
    if isinstance(message, onnx.GraphProto):
        gone = {value.name for value in (*message.input, *message.output)}
        order = {tensor.name: -1 for tensor in message.initializer}
        order |= {name: at for at, node in enumerate(message.node) for name in node.output}
        kept = [value for value in message.value_info if value.name in order and value.name not in gone]
        kept = [
            value.SerializeToString()
            for value in sorted(kept, key=lambda value: (order[value.name], value.name))
        ]
        del message.value_info[:]
        for value in kept:
            message.value_info.add().ParseFromString(value)
    if hasattr(message, "metadata_props"):
        message.metadata_props.sort(key=lambda entry: entry.key)
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.message_type is not None:
            for inner in [value] if hasattr(value, "ListFields") else value:
                _normalize(inner)
        elif value in ("", 0) and not (isinstance(message, onnx.AttributeProto) and field.name in "sif"):
            message.ClearField(field.name)  # type: ignore[attr-defined]


def _normalize_tensor(proto: TensorProto) -> None:
    if proto.HasField("raw_data") or proto.data_type == TensorProto.STRING:
        return
    field = next((entry.name for entry, _ in proto.ListFields() if entry.name.endswith("_data")), None)
    if field is None:
        return
    array = numpy_helper.to_array(proto)
    data = numpy_helper.from_array(array).raw_data
    if len(data) >= 1024:
        proto.ClearField(field)
        proto.raw_data = data


def made_of(nodes, inputs, outputs, tensors=(), opset=21, ir_version=10):
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        list(tensors),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def random_tensor(name, data_type, shape=(40, 30)):
    values = np.random.default_rng(1).integers(0, 3, shape)
    return ir.serde.serialize_tensor(
        ir.Tensor(values.astype(ir.DataType(data_type).numpy()), dtype=ir.DataType(data_type), name=name)
    )
