"""Random graphs: layers of many families, one after another, with the reshapes that exporters write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Appends random layers to a graph; every layer says the shape that it leaves behind."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def weight(self, *shape: int) -> str:
        fan_in = max(1, int(np.prod(shape[1:])))
        values = (self.random.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
        return self.constant(values)

    def ints(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, dtype=np.int64))

    def constant(self, values: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        names = [f"v{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, f"n{len(self.nodes)}", **attributes))
        return names[0]

    # --- images: x is [n, c, h, w] ---

    def conv(self, x: str, c: int, out: int, *, kernel: int = 3, group: int = 1, bias: bool = True) -> str:
        inputs = [x, self.weight(out, c // group, kernel, kernel), *([self.weight(out)] if bias else [])]
        pad = kernel // 2
        return self.op("Conv", *inputs, group=group, pads=[pad] * 4, kernel_shape=[kernel, kernel])

    def norm(self, x: str, c: int) -> str:
        variance = self.constant(self.random.uniform(0.5, 2.0, c).astype(np.float32))
        return self.op("BatchNormalization", x, self.weight(c), self.weight(c), self.weight(c), variance)

    def plain(self, x: str, c: int) -> tuple[str, int]:
        out = int(self.random.choice([4, 6, 8]))
        return self.op("Relu", self.norm(self.conv(x, c, out), out)), out

    def residual(self, x: str, c: int) -> tuple[str, int]:
        inner = self.op("Relu", self.conv(x, c, 6))
        return self.op("Add", self.conv(inner, 6, c, kernel=1), x), c

    def depthwise(self, x: str, c: int) -> tuple[str, int]:
        multiplier = int(self.random.choice([1, 2]))
        return self.conv(x, c, c * multiplier, group=c), c * multiplier

    def grouped(self, x: str, c: int) -> tuple[str, int]:
        wide = self.op("Relu", self.conv(x, c, 8, kernel=1))
        return self.op("Sigmoid", self.conv(wide, 8, 8, group=int(self.random.choice([2, 4])))), 8

    def dense(self, x: str, c: int) -> tuple[str, int]:
        return self.op("Concat", x, self.conv(x, c, 4), axis=1), c + 4

    def shuffle(self, x: str, c: int) -> tuple[str, int]:
        if c % 2:
            return x, c
        shape = self.op("Reshape", x, self.ints(0, 2, c // 2, 5, 5))
        swapped = self.op("Transpose", shape, perm=[0, 2, 1, 3, 4])
        return self.op("Reshape", swapped, self.ints(0, c, 5, 5)), c

    def split(self, x: str, c: int) -> tuple[str, int]:
        first = c // 2
        a = self.op("Split", x, self.ints(first, c - first), outputs=2, axis=1)
        b = self.conv(f"{a}_1", c - first, 4)
        return self.op("Concat", b, a, axis=1), first + 4

    def squeeze_excite(self, x: str, c: int) -> tuple[str, int]:
        pooled = self.op("GlobalAveragePool", x)
        inner = self.op("Relu", self.conv(pooled, c, 4, kernel=1))
        return self.op("Mul", x, self.op("Sigmoid", self.conv(inner, 4, c, kernel=1))), c

    def slice(self, x: str, c: int) -> tuple[str, int]:
        a = self.op("Slice", x, self.ints(0), self.ints(c // 2), self.ints(1))
        b = self.op("Slice", x, self.ints(c // 2), self.ints(2**31), self.ints(1))
        return self.op("Concat", b, a, axis=1), c

    # --- sequences: x is [n, t, d] ---

    def linear(self, x: str, d: int, out: int) -> str:
        weight = self.weight(out, d)
        transposed = self.op("Transpose", weight, perm=[1, 0])
        return self.op("Add", self.op("MatMul", x, transposed), self.weight(out))

    def feed_forward(self, x: str, d: int) -> tuple[str, int]:
        inner = self.op("Tanh", self.linear(x, d, 12))
        return self.op("Add", self.linear(inner, 12, d), x), d

    def gated(self, x: str, d: int) -> tuple[str, int]:
        both = self.op("MatMul", x, self.weight(d, 16))
        gate = self.op("Split", both, self.ints(8, 8), outputs=2, axis=2)
        inner = self.op("Mul", self.op("Sigmoid", gate), f"{gate}_1")
        return self.op("MatMul", inner, self.weight(8, d)), d

    def attention(self, x: str, d: int) -> tuple[str, int]:
        h, e, t = 3, 4, 25
        if self.random.random() < 0.5:  # q, k, v from one product, [3, h, e]
            joint = self.op("Reshape", self.linear(x, d, 3 * h * e), self.ints(0, t, 3, h, e))
            moved = self.op("Transpose", joint, perm=[2, 0, 3, 1, 4])
            q, k, v = (
                self.op("Gather", moved, self.constant(np.array(i, np.int64)), axis=0) for i in range(3)
            )
        else:
            q, k, v = (
                self.op(
                    "Transpose",
                    self.op("Reshape", self.linear(x, d, h * e), self.ints(0, t, h, e)),
                    perm=[0, 2, 1, 3],
                )
                for _ in range(3)
            )
        logits = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        weights = self.op("Softmax", logits, axis=-1)
        mixed = self.op("Transpose", self.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, self.ints(0, t, h * e)), h * e, d), d

    def model(self, depth: int) -> onnx.ModelProto:
        """A stem, random image layers, random sequence layers, and a linear head."""
        images: list[Callable[[str, int], tuple[str, int]]] = [
            self.plain, self.residual, self.depthwise, self.grouped, self.dense, self.shuffle, self.split,
            self.squeeze_excite, self.slice,
        ]  # fmt: skip
        sequences: list[Callable[[str, int], tuple[str, int]]] = [
            self.feed_forward,
            self.gated,
            self.attention,
        ]
        x, c = self.conv("x", 3, 8), 8
        for _ in range(depth):
            x, c = images[self.random.integers(len(images))](x, c)
        if self.random.random() < 0.6:
            x = self.op("Transpose", self.op("Reshape", x, self.ints(0, c, 25)), perm=[0, 2, 1])
            for _ in range(int(self.random.integers(1, 3))):
                x, c = sequences[self.random.integers(len(sequences))](x, c)
            x = self.op("ReduceMean", x, axes=[1], keepdims=0)
        elif self.random.random() < 0.5:
            x = self.op("Flatten", self.op("GlobalAveragePool", x))
        else:
            x, c = self.op("Flatten", x), c * 25
        self.op("Gemm", x, self.weight(5, c), self.weight(5), transB=1)
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes,
            "generated",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 5, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return model


def generated_model(seed: int, depth: int) -> onnx.ModelProto:
    """Return a random model with input ``x`` [n, 3, 5, 5] and output ``y`` [n, 5]."""
    return Builder(seed).model(depth)
