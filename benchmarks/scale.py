"""How analysis grows: generated graphs of 2,500 to 10,000 nodes, and a Llama-shaped one with external data.

    python benchmarks/scale.py                         # the generated graphs
    python benchmarks/scale.py --llama FOLDER          # 32 layers, 4096 wide; 13 GB of random data in FOLDER
    python benchmarks/scale.py --llama FOLDER --holes  # the same, with a sparse file that takes no space

Times are wall time, with CPU time beside it; memory is the peak of what is resident beyond mapped files.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.analyze import analyze

SIZES = (2500, 5000, 10000)


class Graph:
    """Collects nodes and weights; external weights are only places in a file until they are written."""

    def __init__(self, dtype: int = TensorProto.FLOAT, data: str | None = None) -> None:
        self.random = np.random.default_rng(0)
        self.dtype = dtype
        self.data = data
        self.data_bytes = 0
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, TensorProto] = {}

    def op(self, kind: str, *inputs: str, **attributes: object) -> str:
        """Add a node with one output, and return that."""
        return self.split(kind, 1, *inputs, **attributes)[0]

    def split(self, kind: str, count: int, *inputs: str, **attributes: object) -> list[str]:
        """Add a node with several outputs."""
        number = len(self.nodes)
        outputs = [f"v{number}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, f"n{number}", **attributes))
        return outputs

    def constant(self, name: str, values: object) -> str:
        """Add small contents, once for each name."""
        if name not in self.weights:
            array = np.asarray(values)
            if array.dtype == np.float64:
                array = array.astype(helper.tensor_dtype_to_np_dtype(self.dtype))
            self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, *shape: int) -> str:
        """Add a weight: random contents, or a place in the data file."""
        if self.data is None:
            values = self.random.standard_normal(shape, dtype=np.float32) / np.float32(max(shape[-1], 1))
            self.weights[name] = numpy_helper.from_array(values, name)
            return name
        tensor = TensorProto(name=name, data_type=self.dtype, dims=shape, data_location=TensorProto.EXTERNAL)
        length = int(np.prod(shape)) * helper.tensor_dtype_to_np_dtype(self.dtype).itemsize
        for key, value in (("location", self.data), ("offset", self.data_bytes), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        self.weights[name] = tensor
        self.data_bytes += length
        return name

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Return the whole; the last node gives the output."""
        self.nodes[-1].output[0] = outputs[0].name
        graph = helper.make_graph(self.nodes, "scale", inputs, outputs, list(self.weights.values()))
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def mixed(nodes: int, width: int = 32, heads: int = 4) -> onnx.ModelProto:
    """Residual blocks of convolutions, each followed by attention over the places of the image.

    Args:
        nodes: of the graph, at least.
        width: channels.
        heads: of an attention.
    """
    g = Graph()
    each = width // heads
    flat, image = g.constant("flat", [0, 0, 64]), g.constant("image", [0, 0, 8, 8])
    split, merged = g.constant("split", [0, 64, 3, heads, each]), g.constant("merged", [0, 64, width])
    scale, picks = g.constant("scale", each**-0.5), [g.constant(f"pick{i}", np.array(i)) for i in range(3)]
    x = g.op("Conv", "x", g.weight("stem", width, 3, 1, 1))
    block = 0
    while len(g.nodes) < nodes:
        for part in range(3):
            name = f"b{block}.{part}"
            y = g.op(
                "Conv", x, g.weight(f"{name}.a", 2 * width, width, 1, 1), g.weight(f"{name}.ab", 2 * width)
            )
            d = g.weight(f"{name}.d", 2 * width, 1, 3, 3)
            y = g.op("Conv", g.op("Relu", y), d, group=2 * width, pads=[1] * 4)
            y = g.op("Conv", g.op("Relu", y), g.weight(f"{name}.c", width, 2 * width, 1, 1))
            x = g.op("Add", x, y)
        t = g.op("Transpose", g.op("Reshape", x, flat), perm=[0, 2, 1])
        n = g.op("LayerNormalization", t, g.weight(f"b{block}.n", width), g.weight(f"b{block}.nb", width))
        qkv = g.op("Reshape", g.op("MatMul", n, g.weight(f"b{block}.qkv", width, 3 * width)), split)
        q, k, v = (g.op("Gather", g.op("Transpose", qkv, perm=[2, 0, 3, 1, 4]), pick) for pick in picks)
        logits = g.op("Mul", g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2])), scale)
        mixed_values = g.op("Transpose", g.op("MatMul", g.op("Softmax", logits), v), perm=[0, 2, 1, 3])
        o = g.op("MatMul", g.op("Reshape", mixed_values, merged), g.weight(f"b{block}.o", width, width))
        t = g.op("Transpose", g.op("Add", t, o), perm=[0, 2, 1])
        x = g.op("Reshape", t, image)
        block += 1
    g.op("GlobalAveragePool", x)
    return g.model([_value("x", "N", 3, 8, 8)], [_value("y", "N", width, 1, 1)])


def _value(name: str, *shape: int | str, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def write_llama(
    folder: Path, *, holes: bool, layers: int = 32, width: int = 4096, heads: int = 32, shared: int = 8,
    hidden: int = 11008, tokens: int = 32000,
) -> Path:  # fmt: skip
    """Write a decoder of Llama's shape in float16, with its weights beside it, and return the path.

    Args:
        folder: where ``llama.onnx`` and ``llama.onnx.data`` go.
        holes: leave the data file without contents; it then takes no space, and all weights are zero.
        layers: of the model.
        width: of its residual stream.
        heads: of queries in a layer.
        shared: heads of keys and values.
        hidden: units of a feed-forward layer.
        tokens: rows of the embedding.
    """
    path = folder / "llama.onnx"
    g = Graph(TensorProto.FLOAT16, path.name + ".data")
    each, half = width // heads, width // heads // 2
    x = g.op("Gather", g.weight("embed", tokens, width), "ids")
    turn = [
        g.op("Unsqueeze", g.op("Gather", g.weight(table, 4096, each), "places"), g.constant("one", [1]))
        for table in ("cosine", "sine")
    ]

    def normalised(value: str, name: str) -> str:
        squares = g.op("ReduceMean", g.op("Pow", value, g.constant("two", 2.0)), g.constant("last", [-1]))
        root = g.op("Sqrt", g.op("Add", squares, g.constant("epsilon", 1e-5)))
        return g.op("Mul", g.op("Div", value, root), g.weight(name, width))

    def in_heads(value: str, name: str, count: int) -> str:
        target = g.constant(f"heads{count}", [0, 0, count, each])
        product = g.op("MatMul", value, g.weight(name, width, count * each))
        return g.op("Transpose", g.op("Reshape", product, target), perm=[0, 2, 1, 3])

    def rotated(value: str) -> str:
        first, second = g.split("Split", 2, value, g.constant("halves", [half, half]), axis=-1)
        other = g.op("Concat", g.op("Neg", second), first, axis=-1)
        return g.op("Add", g.op("Mul", value, turn[0]), g.op("Mul", other, turn[1]))

    def repeated(value: str) -> str:
        size = g.op("Shape", value)
        batch, length = (g.op("Gather", size, g.constant(f"at{i}", [i])) for i in (0, 2))
        wide = g.constant("repeats", [shared, heads // shared])
        last, whole = g.constant("each", [each]), g.constant("heads", [heads])
        target = g.op("Concat", batch, wide, length, last, axis=0)
        more = g.op("Expand", g.op("Unsqueeze", value, g.constant("axis2", [2])), target)
        return g.op("Reshape", more, g.op("Concat", batch, whole, length, last, axis=0))

    for layer in range(layers):
        y = normalised(x, f"l{layer}.first")
        q = rotated(in_heads(y, f"l{layer}.q", heads))
        k = repeated(rotated(in_heads(y, f"l{layer}.k", shared)))
        v = repeated(in_heads(y, f"l{layer}.v", shared))
        logits = g.op("MatMul", q, g.op("Transpose", k, perm=[0, 1, 3, 2]))
        weights = g.op("Softmax", g.op("Mul", logits, g.constant("scale", each**-0.5)), axis=-1)
        joined = g.op("Transpose", g.op("MatMul", weights, v), perm=[0, 2, 1, 3])
        o = g.op("Reshape", joined, g.constant("whole", [0, 0, width]))
        x = g.op("Add", x, g.op("MatMul", o, g.weight(f"l{layer}.o", width, width)))
        y = normalised(x, f"l{layer}.second")
        gate = g.op("MatMul", y, g.weight(f"l{layer}.gate", width, hidden))
        up = g.op("MatMul", y, g.weight(f"l{layer}.up", width, hidden))
        gated = g.op("Mul", g.op("Mul", gate, g.op("Sigmoid", gate)), up)
        x = g.op("Add", x, g.op("MatMul", gated, g.weight(f"l{layer}.down", hidden, width)))
    g.op("MatMul", normalised(x, "norm"), g.weight("head", width, tokens))
    inputs = [_value(name, "B", "S", dtype=TensorProto.INT64) for name in ("ids", "places")]
    model = g.model(inputs, [_value("logits", "B", "S", tokens, dtype=TensorProto.FLOAT16)])
    path.write_bytes(model.SerializeToString())
    with path.with_name(path.name + ".data").open("wb") as file:
        if holes:
            file.truncate(g.data_bytes)
        else:
            _fill(file, g.data_bytes)
    return path


def _fill(file: object, size_bytes: int) -> None:
    """Write random float16 numbers, 32 MiB at a time, another piece of one long row each time."""
    random = np.random.default_rng(0)
    row = (random.standard_normal(17 << 20, dtype=np.float32) * 0.02).astype(np.float16)
    left = size_bytes
    while left > 0:
        start = int(random.integers(0, 1 << 20))
        piece = row[start : start + min(16 << 20, left // 2)]
        piece.tofile(file)  # type: ignore[arg-type]
        left -= piece.nbytes


class ResidentPeak:
    """Watches what is resident beyond mapped files, in bytes, while it is entered."""

    def __enter__(self) -> ResidentPeak:
        self.start_bytes = self.peak_bytes = self._anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self._anonymous_bytes())

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak_bytes = max(self.peak_bytes, self._anonymous_bytes())

    @staticmethod
    def _anonymous_bytes() -> int:
        for row in Path("/proc/self/status").read_text().splitlines():
            if row.startswith("RssAnon:"):
                return int(row.split()[1]) * 1024
        raise RuntimeError("/proc/self/status names no RssAnon: this needs Linux")


def report(name: str, path: Path) -> float:
    """Load and analyse a file, print a row, and return the CPU seconds of the analysis."""
    with ResidentPeak() as memory:
        started = time.perf_counter()
        model = onnxprune.load(path)
        read = time.perf_counter() - started
        started, cpu = time.perf_counter(), time.process_time()
        analysis = analyze(model)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    free = sum(group.frozen is None for group in analysis.groups)
    print(
        f"{name:10} {len(model.graph):6} nodes  {len(analysis.groups):5} groups, {free:5} open"
        f"  read {read:5.2f} s  analysis {seconds:6.2f} s ({cpu:6.2f} s of CPU)"
        f"  {memory.peak_bytes / 2**20:6.0f} MiB resident beyond mapped files",
        flush=True,
    )
    return cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--llama", type=Path, metavar="FOLDER", help="write and analyse the Llama-shaped model"
    )
    parser.add_argument("--holes", action="store_true", help="without contents in its data file")
    parser.add_argument("--folder", type=Path, default=Path(), help="for the generated graphs")
    options = parser.parse_args()
    if options.llama is not None:
        options.llama.mkdir(parents=True, exist_ok=True)
        report("llama", write_llama(options.llama, holes=options.holes))
        return
    path = options.folder / "scale.onnx"
    taken = []
    for nodes in (100, *SIZES):  # the first one warms up
        onnx.save(mixed(nodes), path)
        seconds = report("mixed", path)
        taken.append((nodes, seconds))
    path.unlink()
    (few, little), (many, much) = taken[1], taken[-1]
    print(f"{many / few:.0f} times the nodes take {much / little:.1f} times the CPU time")


if __name__ == "__main__":
    main()
