"""Writes decoders of Llama's shape: grouped queries, rotary positions, RMS norms, gated feed-forward layers.

    python benchmarks/llm/decoder.py FOLDER                          # Llama-3.2-1B: 1.24 billion parameters
    python benchmarks/llm/decoder.py FOLDER --form contrib --half    # ONNX Runtime's own operators, float16
    python benchmarks/llm/decoder.py FOLDER --layers 2 --width 256 --hidden 512 --heads 8
        --key-heads 2 --places 32 --vocabulary 512

FOLDER gets ``model.onnx``, its weights in ``model.onnx.data``, and samples in ``calib.npz``. Weights are
drawn and written one tensor at a time, each from the seed and its own name, so memory stays below the largest
one. They are normal, of a deviation of 1 / sqrt(inputs), some inputs being louder than others, as in trained
decoders; what a model computes means nothing, but its activations stay of a sensible size in every layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"

#: Tensors below this stay in the model file.
_INLINE_BYTES = 1024

#: Large tensors start at multiples of this.
_PAGE_BYTES = 4096

#: Rows of a weight that are drawn at once.
_STRIP_ELEMENTS = 1 << 24


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, those of Llama-3.2-1B by default.

    Attributes:
        layers: of attention and feed-forward.
        width: of the residual stream.
        heads: of queries.
        key_heads: of keys and values; each serves ``heads / key_heads`` of the queries.
        places: of a head.
        hidden: units of a feed-forward layer.
        vocabulary: rows of the embedding.
        positions: that rotary tables know.
        tied: the embedding, transposed, also makes the logits.
    """

    layers: int = 16
    width: int = 2048
    heads: int = 32
    key_heads: int = 8
    places: int = 64
    hidden: int = 8192
    vocabulary: int = 128256
    positions: int = 4096
    tied: bool = True

    def parameters(self) -> int:
        """Return how many numbers the weights have, rotary tables left out."""
        attention = self.width * self.places * 2 * (self.heads + self.key_heads)
        layer = attention + 3 * self.width * self.hidden + 2 * self.width
        ends = self.vocabulary * self.width * (1 if self.tied else 2) + self.width
        return self.layers * layer + ends


#: A decoder for tests.
SMALL = Shape(layers=2, width=256, heads=8, key_heads=2, places=32, hidden=512, vocabulary=512, positions=128)


class _Graph:
    """Collects nodes, and writes weights as they come."""

    def __init__(self, path: Path, *, half: bool, seed: int) -> None:
        self.path = path
        self.seed = seed
        self.half = half
        self.dtype = np.dtype(np.float16 if half else np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, TensorProto] = {}
        self.data = path.with_name(path.name + ".data").open("wb")

    def op(self, kind: str, *inputs: str, count: int = 1, **attributes: object) -> str:
        """Add a node; return its first output, others being named alike with another number at the end."""
        number = len(self.nodes)
        outputs = [f"v{number}_{place}" for place in range(count)]
        domain = MICROSOFT if kind in ("GroupQueryAttention", "RotaryEmbedding") else ""
        node = helper.make_node(kind, list(inputs), outputs, f"n{number}", domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def constant(self, name: str, values: object, dtype: object = None) -> str:
        """Add small contents, once for each name."""
        if name not in self.weights:
            array = np.asarray(values, dtype or (np.int64 if not isinstance(values, float) else self.dtype))
            self.weights[name] = numpy_helper.from_array(array, name)
        return name

    def weight(self, name: str, *shape: int, deviation: float = 0.0, loud: int = 0) -> str:
        """Add a weight: about one without a deviation, else normal, some places of an axis being loud."""
        if name in self.weights:
            return name
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        rows = max(1, _STRIP_ELEMENTS // int(np.prod(shape[1:], dtype=np.int64)))
        factors = np.exp(0.5 * random.standard_normal(shape[loud], dtype=np.float32)) if deviation else None

        def strips() -> Iterator[np.ndarray]:
            for start in range(0, shape[0], rows):
                size = (min(rows, shape[0] - start), *shape[1:])
                if factors is None:
                    yield (1 + 0.1 * random.standard_normal(size, dtype=np.float32)).astype(self.dtype)
                    continue
                strip = random.standard_normal(size, dtype=np.float32)
                mine = factors if loud else factors[start : start + len(strip)]
                strip *= (mine if loud else mine[:, None]) * np.float32(deviation)
                yield strip.astype(self.dtype)

        return self._add(name, shape, strips())

    def table(self, name: str, array: np.ndarray) -> str:
        """Add a table of floats."""
        return self._add(name, array.shape, [array.astype(self.dtype)])

    def _add(self, name: str, shape: tuple[int, ...], strips: Iterable[np.ndarray]) -> str:
        size = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        data_type = helper.np_dtype_to_tensor_dtype(self.dtype)
        tensor = TensorProto(name=name, data_type=data_type, dims=shape)
        if size < _INLINE_BYTES:
            tensor.raw_data = b"".join(strip.tobytes() for strip in strips)
        else:
            self.data.write(bytes(-self.data.tell() % _PAGE_BYTES))
            tensor.data_location = TensorProto.EXTERNAL
            place = {"location": self.path.name + ".data", "offset": self.data.tell(), "length": size}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
            for strip in strips:
                self.data.write(strip.data)
        self.weights[name] = tensor
        return name


def write_decoder(
    folder: Path, shape: Shape, *, form: str = "plain", half: bool = False, cache: bool = False, seed: int = 0
) -> Path:
    """Write a decoder, and return the path of the model.

    Args:
        folder: where ``model.onnx`` and ``model.onnx.data`` go.
        shape: sizes.
        form: ``plain``, of operators of ONNX alone, or ``contrib``, with those that ONNX Runtime adds.
        half: in float16.
        cache: with inputs and outputs for the keys and values of earlier tokens.
        seed: of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    g = _Graph(folder / "model.onnx", half=half, seed=seed)
    decoder = (_Plain if form == "plain" else _Contrib)(g, shape, cache=cache)
    with g.data:
        inputs, outputs = decoder.build()
    graph = helper.make_graph(g.nodes, "decoder", inputs, outputs, list(g.weights.values()))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="onnxprune benchmarks")
    g.path.write_bytes(model.SerializeToString())
    return g.path


class _Decoder:
    """What both forms have in common."""

    def __init__(self, g: _Graph, shape: Shape, *, cache: bool) -> None:
        self.g, self.shape, self.cache = g, shape, cache
        half = shape.places // 2
        angles = np.outer(np.arange(shape.positions), 1e4 ** -(np.arange(half) / half))
        self.cosine, self.sine = np.cos(angles), np.sin(angles)

    def build(self) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        """Add all nodes; return the inputs and the outputs of the model."""
        g, s = self.g, self.shape
        embedding = g.weight("embedding", s.vocabulary, s.width, deviation=1.0, loud=1)
        x = g.op("Gather", embedding, "input_ids")
        self.begin()
        for layer in range(s.layers):
            name = f"layers.{layer}"
            y = self.normalised(x, f"{name}.attention_norm")
            q = self.product(y, f"{name}.q", s.width, s.heads * s.places)
            k = self.product(y, f"{name}.k", s.width, s.key_heads * s.places)
            v = self.product(y, f"{name}.v", s.width, s.key_heads * s.places)
            a = self.attention(layer, q, k, v)
            x = g.op("Add", x, self.product(a, f"{name}.o", s.heads * s.places, s.width, quiet=True))
            y = self.normalised(x, f"{name}.feed_forward_norm")
            gate = self.product(y, f"{name}.gate", s.width, s.hidden)
            gate = g.op("Mul", gate, g.op("Sigmoid", gate))
            up = g.op("Mul", gate, self.product(y, f"{name}.up", s.width, s.hidden))
            x = g.op("Add", x, self.product(up, f"{name}.down", s.hidden, s.width, quiet=True))
        y = self.normalised(x, "norm")
        if s.tied:
            head = g.op("Transpose", embedding, perm=[1, 0])
            y = g.op("Mul", y, g.constant("head_scale", float(s.width**-0.5)))
        else:
            head = g.weight("head", s.width, s.vocabulary, deviation=s.width**-0.5)
        logits = g.op("MatMul", y, head)
        g.nodes[-1].output[0] = "logits"
        assert logits
        return self.interface()

    def begin(self) -> None:
        """Add what all layers share."""
        raise NotImplementedError

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        """Add one attention, from projected queries, keys and values to what is projected back."""
        raise NotImplementedError

    def normalised(self, x: str, name: str) -> str:
        """Add an RMS norm."""
        raise NotImplementedError

    def product(self, x: str, name: str, rows: int, columns: int, *, quiet: bool = False) -> str:
        """Add a projection; what goes into the residual stream is quieter, the more layers there are."""
        deviation = rows**-0.5 * ((2 * self.shape.layers) ** -0.5 if quiet else 1.0)
        return self.g.op("MatMul", x, self.g.weight(name, rows, columns, deviation=deviation))

    def interface(self) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
        s, number = self.shape, TensorProto.INT64
        kind = TensorProto.FLOAT16 if self.g.half else TensorProto.FLOAT
        make = helper.make_tensor_value_info
        inputs = [make("input_ids", number, ["batch", "tokens"])]
        outputs = [make("logits", kind, ["batch", "tokens", s.vocabulary])]
        total = "past_tokens + tokens" if self.cache else "tokens"
        inputs.append(make("attention_mask", number, ["batch", total]))
        if isinstance(self, _Plain):
            inputs.append(make("position_ids", number, ["batch", "tokens"]))
        for layer in range(s.layers if self.cache else 0):
            for what in ("key", "value"):
                sizes = ["batch", s.key_heads, "past_tokens", s.places]
                inputs.append(make(f"past.{layer}.{what}", kind, sizes))
                sizes = ["batch", s.key_heads, "past_tokens + tokens", s.places]
                outputs.append(make(f"present.{layer}.{what}", kind, sizes))
        return inputs, outputs


class _Plain(_Decoder):
    """Operators of ONNX alone, as torch exports them."""

    def begin(self) -> None:
        g = self.g
        tables = {
            name: g.table(name, np.concatenate([half, half], axis=1))
            for name, half in (("cosine", self.cosine), ("sine", self.sine))
        }
        axis1 = g.constant("axis1", [1])
        self.turns = [
            g.op("Unsqueeze", g.op("Gather", table, "position_ids"), axis1) for table in tables.values()
        ]
        # a token sees itself and those before it, where the mask says so
        zero, one = g.constant("zero", 0), g.constant("one", 1)
        tokens = g.op("Gather", g.op("Shape", "input_ids"), one)
        total = g.op("Gather", g.op("Shape", "attention_mask"), one)
        places = g.op("Add", g.op("Range", zero, tokens, one), g.op("Sub", total, tokens))
        before = g.op(
            "GreaterOrEqual",
            g.op("Unsqueeze", places, g.constant("axis1", [1])),
            g.op("Range", zero, total, one),
        )
        there = g.op("Cast", "attention_mask", to=TensorProto.BOOL)
        there = g.op("Unsqueeze", there, g.constant("axes12", [1, 2]))
        seen = g.op("And", before, there)
        self.hidden = g.op("Where", seen, g.constant("nothing", 0.0), g.constant("low", -1e4))

    def normalised(self, x: str, name: str) -> str:
        g = self.g
        wide = g.op("Cast", x, to=TensorProto.FLOAT) if g.half else x
        squares = g.op("Pow", wide, g.constant("two", 2.0, np.float32))
        mean = g.op("ReduceMean", squares, g.constant("last", [-1]))
        root = g.op("Sqrt", g.op("Add", mean, g.constant("epsilon", 1e-5, np.float32)))
        y = g.op("Div", wide, root)
        y = g.op("Cast", y, to=TensorProto.FLOAT16) if g.half else y
        return g.op("Mul", y, g.weight(name, self.shape.width))

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        g, s = self.g, self.shape
        query, key = self._rotated(self._heads(q, s.heads)), self._rotated(self._heads(k, s.key_heads))
        value = self._heads(v, s.key_heads)
        if self.cache:
            key, value = (self._cached(layer, what, new) for what, new in (("key", key), ("value", value)))
        key, value = self._repeated(key), self._repeated(value)
        logits = g.op("MatMul", query, g.op("Transpose", key, perm=[0, 1, 3, 2]))
        logits = g.op("Mul", logits, g.constant("scale", float(s.places**-0.5)))
        weights = g.op("Softmax", g.op("Add", logits, self.hidden), axis=-1)
        mixed = g.op("Transpose", g.op("MatMul", weights, value), perm=[0, 2, 1, 3])
        return g.op("Reshape", mixed, g.constant("joined", [0, 0, s.heads * s.places]))

    def _heads(self, x: str, count: int) -> str:
        g = self.g
        target = g.constant(f"heads{count}", [0, 0, count, self.shape.places])
        return g.op("Transpose", g.op("Reshape", x, target), perm=[0, 2, 1, 3])

    def _rotated(self, x: str) -> str:
        g, half = self.g, self.shape.places // 2
        ends = {"first": (0, half), "second": (half, 2 * half)}
        first, second = (
            g.op(
                "Slice",
                x,
                g.constant(f"{n}_start", [a]),
                g.constant(f"{n}_end", [b]),
                g.constant("axis3", [3]),
            )
            for n, (a, b) in ends.items()
        )
        other = g.op("Concat", g.op("Neg", second), first, axis=-1)
        return g.op("Add", g.op("Mul", x, self.turns[0]), g.op("Mul", other, self.turns[1]))

    def _cached(self, layer: int, what: str, new: str) -> str:
        self.g.op("Concat", f"past.{layer}.{what}", new, axis=2)
        self.g.nodes[-1].output[0] = f"present.{layer}.{what}"
        return f"present.{layer}.{what}"

    def _repeated(self, x: str) -> str:
        g, s = self.g, self.shape
        size = g.op("Shape", x)
        batch, length = (g.op("Gather", size, g.constant(f"at{place}", [place])) for place in (0, 2))
        last = g.constant("places", [s.places])
        both = g.constant("repeats", [s.key_heads, s.heads // s.key_heads])
        target = g.op("Concat", batch, both, length, last, axis=0)
        more = g.op("Expand", g.op("Unsqueeze", x, g.constant("axis2", [2])), target)
        return g.op(
            "Reshape", more, g.op("Concat", batch, g.constant("all", [s.heads]), length, last, axis=0)
        )


class _Contrib(_Decoder):
    """With the operators that ONNX Runtime adds, as its own tools write them."""

    def begin(self) -> None:
        g = self.g
        self.tables = [g.table("cos_cache", self.cosine), g.table("sin_cache", self.sine)]
        one = g.constant("one", 1)
        count = g.op("ReduceSum", "attention_mask", g.constant("axis1", [1]), keepdims=0)
        self.last = g.op("Cast", g.op("Sub", count, one), to=TensorProto.INT32)
        total = g.op("Gather", g.op("Shape", "attention_mask"), one)
        self.total = g.op("Cast", total, to=TensorProto.INT32)

    def normalised(self, x: str, name: str) -> str:
        weight = self.g.weight(name, self.shape.width)
        return self.g.op("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=1e-5, stash_type=1)

    def attention(self, layer: int, q: str, k: str, v: str) -> str:
        s = self.shape
        past = [f"past.{layer}.{what}" if self.cache else "" for what in ("key", "value")]
        sizes = {"num_heads": s.heads, "kv_num_heads": s.key_heads, "do_rotary": 1}
        tail = [self.last, self.total, *self.tables]
        y = self.g.op("GroupQueryAttention", q, k, v, *past, *tail, count=3, **sizes)
        if self.cache:
            for place, what in enumerate(("key", "value"), start=1):
                self.g.nodes[-1].output[place] = f"present.{layer}.{what}"
        else:
            del self.g.nodes[-1].output[1:]
        return y


def write_samples(
    path: Path, shape: Shape, samples: int, tokens: int, *, form: str = "plain", past: int | None = None,
    half: bool = False, seed: int = 1,
) -> Path:  # fmt: skip
    """Write random samples for a decoder: token numbers, some far more often than others.

    Args:
        path: an .npz file.
        shape: of the decoder.
        samples: how many.
        tokens: of each.
        form: of the decoder.
        past: tokens in the cache, where the decoder has one; they are random.
        half: the decoder is in float16.
        seed: of the samples.
    """
    random = np.random.default_rng(seed)
    ids = (random.random((samples, tokens)) ** 3 * shape.vocabulary).astype(np.int64)
    before = past or 0
    arrays = {"input_ids": ids, "attention_mask": np.ones((samples, before + tokens), np.int64)}
    if form == "plain":
        arrays["position_ids"] = np.tile(np.arange(before, before + tokens), (samples, 1))
    if past is not None:
        size = (samples, shape.key_heads, past, shape.places)
        for layer in range(shape.layers):
            for what in ("key", "value"):
                drawn = random.standard_normal(size, dtype=np.float32)
                arrays[f"past.{layer}.{what}"] = drawn.astype(np.float16 if half else np.float32)
    np.savez(path, **arrays)
    return path


def main() -> None:
    """Write a decoder and its samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    for field in dataclasses.fields(Shape):
        if field.name != "tied":
            option = "--" + field.name.replace("_", "-")
            parser.add_argument(option, type=int, default=field.default, help=f"default {field.default}")
    parser.add_argument("--untied", action="store_true", help="logits have a matrix of their own")
    parser.add_argument("--form", choices=["plain", "contrib"], default="plain")
    parser.add_argument("--half", action="store_true", help="float16")
    parser.add_argument(
        "--cache", action="store_true", help="take and give keys and values of earlier tokens"
    )
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    sizes = {f.name: getattr(options, f.name) for f in dataclasses.fields(Shape) if f.name != "tied"}
    shape = Shape(**sizes, tied=not options.untied)
    path = write_decoder(options.folder, shape, form=options.form, half=options.half, cache=options.cache)
    write_samples(
        options.folder / "calib.npz", shape, options.samples, options.tokens, form=options.form,
        past=8 if options.cache else None, half=options.half,
    )  # fmt: skip
    print(f"{path}: {shape.parameters() / 1e6:,.1f} million parameters")


if __name__ == "__main__":
    main()
