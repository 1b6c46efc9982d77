"""Random inputs: types, ranges, tables, switches."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_files import made_of, random_tensor
from onnx import TensorProto, helper

from onnxprune.errors import UsageError
from onnxprune.feeds import random_feeds
from onnxprune.runtime import open_session

FLOAT = TensorProto.FLOAT


class TestRandomFeeds:
    def model(self):
        return ir.from_proto(
            made_of(
                [
                    ("Cast", ["ids"], ["wide"], {"to": TensorProto.INT64}),
                    ("Gather", ["table", "wide"], ["rows"]),
                    ("Identity", ["attention_mask"], ["m"]),
                    ("Identity", ["image"], ["i"]),
                    ("Identity", ["flag"], ["f"]),
                    ("Identity", ["pixels"], ["p"]),
                ],
                [
                    ("ids", TensorProto.INT32, ["b", 50]),
                    ("attention_mask", TensorProto.INT64, ["b", 50]),
                    ("image", TensorProto.FLOAT16, ["b", 50]),
                    ("flag", TensorProto.BOOL, []),
                    ("pixels", TensorProto.UINT8, ["b", 50]),
                ],
                [("rows", FLOAT, None)],
                [random_tensor("table", FLOAT, (3, 8))],
            )
        )

    SHAPES = {  # noqa: RUF012
        "ids": (4, 50), "attention_mask": (4, 50), "image": (4, 50), "flag": (), "pixels": (4, 50)
    }  # fmt: skip

    def test_types_and_ranges(self):
        feeds = random_feeds(self.model(), self.SHAPES, seed=0)
        assert {name: array.shape for name, array in feeds.items()} == self.SHAPES
        assert [array.dtype for array in feeds.values()] == [np.int32, np.int64, np.float16, bool, np.uint8]
        assert set(np.unique(feeds["ids"])) == {0, 1, 2}  # the table has three rows
        assert set(np.unique(feeds["attention_mask"])) == {0, 1}
        assert feeds["attention_mask"][:, 0].all()
        assert 60 < feeds["pixels"].max() < 100
        assert abs(feeds["image"].astype(float).std() - 1) < 0.2

    def test_rows_of_fused_tables(self):
        """Each kind of ids stays below the rows of its own table."""
        microsoft = {"domain": "com.microsoft"}
        embedded = ["ids", "kinds", "words", "places", "segments", "g", "b"]
        tables = {"words": (7, 8), "places": (60, 8), "segments": (2, 8), "g": (8,), "b": (8,)}
        tables |= {"cos": (55, 4), "sin": (55, 4)}
        graph = helper.make_graph(
            [
                helper.make_node("EmbedLayerNormalization", embedded, ["y", "mask"], **microsoft),
                helper.make_node("RotaryEmbedding", ["q", "positions", "cos", "sin"], ["r"], **microsoft),
            ],
            "graph",
            [
                helper.make_tensor_value_info("ids", TensorProto.INT32, [4, 50]),
                helper.make_tensor_value_info("kinds", TensorProto.INT32, [4, 50]),
                helper.make_tensor_value_info("positions", TensorProto.INT64, [4, 50]),
                helper.make_tensor_value_info("q", FLOAT, [4, 50, 8]),
            ],
            [helper.make_tensor_value_info(name, FLOAT, None) for name in ("y", "r")],
            [random_tensor(name, FLOAT, shape) for name, shape in tables.items()],
        )
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = ir.from_proto(helper.make_model(graph, opset_imports=imports, ir_version=8))
        fed = {"ids": (4, 50), "kinds": (4, 50), "positions": (4, 50), "q": (4, 50, 8)}
        feeds = random_feeds(model, fed, seed=0)
        assert [feeds[name].max() for name in ("ids", "kinds")] == [6, 1]
        assert 45 < feeds["positions"].max() < 55
        assert open_session(model).run(feeds)

    def test_seed(self):
        first, again, other = (random_feeds(self.model(), self.SHAPES, seed) for seed in (1, 1, 2))
        assert all(np.array_equal(first[name], again[name]) for name in first)
        assert not np.array_equal(first["image"], other["image"])

    def test_errors(self):
        with pytest.raises(UsageError, match="no shape given for input 'flag'"):
            random_feeds(self.model(), {k: v for k, v in self.SHAPES.items() if k != "flag"}, seed=0)
        words = made_of([("Identity", ["s"], ["y"])], [("s", TensorProto.STRING, [1])], [("y", FLOAT, [1])])
        with pytest.raises(UsageError, match="input 's' takes no numbers"):
            random_feeds(ir.from_proto(words), {"s": (1,)}, seed=0)


def test_a_switch_is_one_of_the_numbers_it_is_compared_with():
    """Within a branch too, and behind a cast; a vector of numbers is no switch."""
    model = ir.from_proto(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
            g (int32 rate, int64[3] ids, float[2] x) => (float[2] y, bool[3] z)
            <int64 high = {16000}, int64 low = {8000}> {
                wide = Cast<to = 7>(rate) fast = Equal(wide, high) z = Equal(ids, low)
                y = If(fast) <then_branch = t () => (float[2] o) { o = Neg(x) },
                              else_branch = e () => (float[2] o) {
                                  slow = Equal(low, wide)
                                  o = If(slow) <then_branch = tt () => (float[2] p) { p = Exp(x) },
                                                else_branch = te () => (float[2] p) { p = Abs(x) }> }> }""")
    )
    feeds = [random_feeds(model, {"rate": (), "ids": (3,), "x": (2,)}, seed) for seed in range(20)]
    assert {feed["rate"].item() for feed in feeds} == {8000, 16000}
    assert feeds[0]["rate"].dtype == np.int32
    assert max(feed["ids"].max() for feed in feeds) < 100


def test_inputs_that_no_memory_holds_are_refused_before_they_are_drawn():
    model = ir.from_proto(
        made_of([("Identity", ["x"], ["y"])], [("x", FLOAT, ["n"])], [("y", FLOAT, ["n"])], [])
    )
    for size in (1 << 40, 1 << 62):
        with pytest.raises(UsageError, match=f"'x' of shape {size} takes too much memory"):
            random_feeds(model, {"x": (size,)}, 0)


def test_a_table_that_is_computed_has_the_rows_that_shapes_tell():
    nodes = [
        ("MatMul", ["x", "w"], ["table"]),
        ("Relu", ["table"], ["positive"]),
        ("Gather", ["positive", "ids"], ["y"]),
    ]
    inputs = [("x", FLOAT, ["n", 4]), ("ids", TensorProto.INT64, [60])]
    model = ir.from_proto(made_of(nodes, inputs, [("y", FLOAT, None)], [random_tensor("w", FLOAT, (4, 2))]))
    feeds = random_feeds(model, {"x": (3, 4), "ids": (60,)}, seed=0)
    assert set(np.unique(feeds["ids"])) == {0, 1, 2}
    assert open_session(model).run(feeds)["y"].shape == (60, 2)
