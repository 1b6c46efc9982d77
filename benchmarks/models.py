"""Models with random weights for benchmarks: made here, so that nothing has to be downloaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def resnet50(seed: int = 0) -> onnx.ModelProto:
    """ResNet-50 (He et al. 2015), batch norms folded: 25.5 million parameters, input [N, 3, 224, 224]."""
    random = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def tensor(name: str, *shape: int, scale: float = 1.0) -> str:
        weights.append(numpy_helper.from_array(random.standard_normal(shape, dtype=np.float32) * scale, name))
        return name

    def op(kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        return name

    def conv(x: str, name: str, inputs: int, outputs: int, kernel: int, stride: int = 1) -> str:
        scale = float(np.sqrt(1 / (inputs * kernel * kernel)))
        w = tensor(f"{name}.weight", outputs, inputs, kernel, kernel, scale=scale)
        b = tensor(f"{name}.bias", outputs, scale=0.1)
        pads = [kernel // 2] * 4
        return op("Conv", x, w, b, kernel_shape=[kernel, kernel], strides=[stride, stride], pads=pads)

    x = op("Relu", conv("x", "conv1", 3, 64, 7, 2))
    x = op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    inputs = 64
    for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
        for block in range(blocks):
            name, stride = f"layer{stage + 1}.{block}", 2 if stage and not block else 1
            y = op("Relu", conv(x, f"{name}.conv1", inputs, width, 1))
            y = op("Relu", conv(y, f"{name}.conv2", width, width, 3, stride))
            y = conv(y, f"{name}.conv3", width, 4 * width, 1)
            shortcut = x if block else conv(x, f"{name}.downsample", inputs, 4 * width, 1, stride)
            x, inputs = op("Relu", op("Add", y, shortcut)), 4 * width
    x = op("Flatten", op("GlobalAveragePool", x))
    fc, bias = tensor("fc.weight", 1000, 2048, scale=0.02), tensor("fc.bias", 1000)
    nodes.append(helper.make_node("Gemm", [x, fc, bias], ["y"], "fc", transB=1))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 224, 224])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1000])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_linear_chain(
    path: Path, layers: int, width: int, seed: int = 0, *, alike: bool = False, sparse: bool = False
) -> int:
    """Write ``layers`` square float32 MatMuls with external data, one layer at a time; return the bytes.

    Args:
        path: of the model; the data goes beside it.
        layers: how many.
        width: of the weights.
        seed: of the weights.
        alike: all layers have the same weights, stored for each, which takes a tenth of the time.
        sparse: of each weight, all but its first 64 rows are holes in the file, and zero.
    """
    random = np.random.default_rng(seed)
    nodes, initializers, offset, value = [], [], 0, "x"
    with path.with_suffix(".onnx.data").open("wb") as data:
        for layer in range(layers):
            if layer == 0 or not alike:
                weights = random.standard_normal((width, width), dtype=np.float32)
                weights /= np.float32(np.sqrt(width))
            data.seek(offset)
            data.write(weights[: 64 if sparse else width].data.cast("B"))
            data.truncate(offset + weights.nbytes)
            proto = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=weights.shape)
            proto.data_location = TensorProto.EXTERNAL
            place = {"location": path.name + ".data", "offset": offset, "length": weights.nbytes}
            for key, entry in place.items():
                proto.external_data.add(key=key, value=str(entry))
            initializers.append(proto)
            offset += weights.nbytes
            result = "y" if layer == layers - 1 else f"h{layer}"
            nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [result], f"layer{layer}"))
            value = result
    shape = ["N", width]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return offset
