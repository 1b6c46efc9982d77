"""Small models that tests share: built anew at each call, with weights drawn from a seed.

===================  =======================================  =================  ==============
function             layers                                   inputs             outputs
===================  =======================================  =================  ==============
``residual_net``     conv, batch norm, relu, residual sum     x [n, 3, 8, 8]     y [n, 10]
``depthwise_net``    1x1 and depthwise convolutions           x [n, 3, 8, 8]     y [n, 10]
``concat_net``       two branches, concatenated               x [n, 3, 8, 8]     y [n, 10]
``mlp``              three fully connected layers (Gemm)      x [n, 16]          y [n, 4]
``attention``        one transformer block, four heads        x [n, 6, 32]       y [n, 6, 32]
``frozen_net``       one convolution that is the output       x [n, 3, 8, 8]     y [n, 8, 8, 8]
===================  =======================================  =================  ==============
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8


class _Builder:
    """Collects nodes and weights; names are those of the weights' layers, as exporters give them."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def constant(self, name: str, values: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:])))
        return self.constant(name, (self.random.standard_normal(shape) * scale).astype(np.float32))

    def op(self, kind: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], f"{output}_node", **attributes))
        return output

    def conv(self, name: str, x: str, before: int, after: int, kernel: int = 3, group: int = 1) -> str:
        inputs = [
            x,
            self.weight(f"{name}.weight", after, before // group, kernel, kernel),
            self.weight(f"{name}.bias", after),
        ]
        return self.op("Conv", inputs, name, group=group, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2)

    def norm(self, name: str, x: str, channels: int) -> str:
        variance = self.random.uniform(0.5, 2, channels).astype(np.float32)
        inputs = [
            x,
            *(self.weight(f"{name}.{part}", channels) for part in ("weight", "bias", "running_mean")),
        ]
        return self.op("BatchNormalization", [*inputs, self.constant(f"{name}.running_var", variance)], name)

    def relu(self, x: str) -> str:
        return self.op("Relu", [x], f"{x}_relu")

    def linear(self, name: str, x: str, before: int, after: int, output: str | None = None) -> str:
        inputs = [x, self.weight(f"{name}.weight", after, before), self.weight(f"{name}.bias", after)]
        return self.op("Gemm", inputs, output or name, transB=1)

    def project(self, name: str, x: str, before: int, after: int, output: str | None = None) -> str:
        """A fully connected layer on [n, t, d]."""
        product = self.op("MatMul", [x, self.weight(f"{name}.weight", before, after)], f"{name}_product")
        return self.op("Add", [product, self.weight(f"{name}.bias", after)], output or name)

    def head(self, x: str, channels: int, classes: int = 10) -> None:
        pooled = self.op("GlobalAveragePool", [x], "pool")
        self.linear("fc", self.op("Flatten", [pooled], "flat"), channels, classes, "y")

    def model(self, x: Sequence[object], y: Sequence[object]) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
            for name, shape in (("x", x), ("y", y))
        ]
        graph = helper.make_graph(self.nodes, "small", infos[:1], infos[1:], self.weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        return model


def residual_net(seed: int = 0, width: int = 16) -> onnx.ModelProto:
    """A stem and two residual blocks; the sums couple ``stem``, ``block1.conv2`` and ``block2.conv2``."""
    net = _Builder(seed)
    x = net.relu(net.norm("stem_bn", net.conv("stem", "x", 3, width), width))
    for block in ("block1", "block2"):
        inner = net.relu(net.norm(f"{block}.bn1", net.conv(f"{block}.conv1", x, width, width), width))
        outer = net.norm(f"{block}.bn2", net.conv(f"{block}.conv2", inner, width, width), width)
        x = net.relu(net.op("Add", [outer, x], f"{block}_sum"))
    net.head(x, width)
    return net.model(["n", 3, 8, 8], ["n", 10])


def depthwise_net(seed: int = 0, width: int = 16) -> onnx.ModelProto:
    """Expand, depthwise, project, as MobileNet does; ``expand`` and ``depthwise`` are coupled."""
    net = _Builder(seed)
    x = net.relu(net.conv("stem", "x", 3, width))
    x = net.relu(net.conv("expand", x, width, 2 * width, kernel=1))
    x = net.relu(net.conv("depthwise", x, 2 * width, 2 * width, group=2 * width))
    net.head(net.conv("project", x, 2 * width, width, kernel=1), width)
    return net.model(["n", 3, 8, 8], ["n", 10])


def concat_net(seed: int = 0, width: int = 16) -> onnx.ModelProto:
    """Two branches of a stem side by side; each keeps channels of its own through the Concat."""
    net = _Builder(seed)
    x = net.relu(net.conv("stem", "x", 3, width))
    branches = [net.relu(net.conv(name, x, width, width // 2)) for name in ("left", "right")]
    joined = net.op("Concat", branches, "joined", axis=1)
    net.head(net.relu(net.conv("mix", joined, width, width, kernel=1)), width)
    return net.model(["n", 3, 8, 8], ["n", 10])


def mlp(seed: int = 0, width: int = 32) -> onnx.ModelProto:
    """Three fully connected layers, ``fc1``, ``fc2`` and ``fc3``."""
    net = _Builder(seed)
    x = net.relu(net.linear("fc1", "x", 16, width))
    x = net.relu(net.linear("fc2", x, width, width))
    net.linear("fc3", x, width, 4, "y")
    return net.model(["n", 16], ["n", 4])


def attention(seed: int = 0, width: int = 32, heads: int = 4, tokens: int = 6) -> onnx.ModelProto:
    """Attention and a feed-forward layer of twice the width, both with residual sums, no norms."""
    net = _Builder(seed)
    size = width // heads
    split = net.constant("split_shape", np.array([0, tokens, heads, size], dtype=np.int64))
    q, k, v = (
        net.op("Reshape", [net.project(name, "x", width, width), split], f"{name}_split")
        for name in ("query", "key", "value")
    )
    q, v = (net.op("Transpose", [part], f"{part}_moved", perm=[0, 2, 1, 3]) for part in (q, v))
    k = net.op("Transpose", [k], "key_moved", perm=[0, 2, 3, 1])
    scale = net.constant("scale", np.array(size**-0.5, dtype=np.float32))
    logits = net.op("Mul", [net.op("MatMul", [q, k], "products"), scale], "logits")
    mixed = net.op("MatMul", [net.op("Softmax", [logits], "weights", axis=-1), v], "mixed")
    moved = net.op("Transpose", [mixed], "mixed_moved", perm=[0, 2, 1, 3])
    joined = net.op(
        "Reshape", [moved, net.constant("join_shape", np.array([0, tokens, width], dtype=np.int64))], "joined"
    )
    x = net.op("Add", [net.project("out", joined, width, width), "x"], "after_attention")
    inner = net.relu(net.project("up", x, width, 2 * width))
    net.op("Add", [net.project("down", inner, 2 * width, width), x], "y")
    return net.model(["n", tokens, width], ["n", tokens, width])


def frozen_net(seed: int = 0, name: str = "only") -> onnx.ModelProto:
    """One convolution whose result is the output: nothing can be pruned by channels."""
    net = _Builder(seed)
    net.conv(name, "x", 3, 8)
    net.nodes[-1].output[0] = "y"
    return net.model(["n", 3, 8, 8], ["n", 8, 8, 8])


def int_constant(name: str, *numbers: int) -> onnx.TensorProto:
    """An int64 initializer: a scalar for one number, else a list."""
    return numpy_helper.from_array(
        np.array(numbers[0] if len(numbers) == 1 else numbers, dtype=np.int64), name
    )


def save_model(model: onnx.ModelProto, path: Path) -> Path:
    """Write a model to a file, and return the file."""
    onnx.save(model, path)
    return path
