"""Times of kernels: which nodes of the model each one stands for, in models that ONNX Runtime rewrites."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models

from onnxprune.errors import ModelError, RuntimeFailure, UsageError
from onnxprune.runtime import Execution, kernels, time_kernels

FLOAT = np.float32


def parsed(text):
    return ir.from_proto(onnx.parser.parse_model(text))


def covers(times):
    return [kernel.covers for kernel in times if kernel.covers]


def images(size=8):
    return {"x": np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(FLOAT)}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder that temporary files go to."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


BLOCK = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1, 8, 8, 8] x, float[16, 8, 3, 3] w1, float[16, 16, 3, 3] w2, float[16, 8, 1, 1] w3, float[16] s)
    => (float[1, 16, 8, 8] y) {
    [first] a = Conv<pads = [1, 1, 1, 1]>(x, w1)
    [norm] n = BatchNormalization(a, s, s, s, s)
    [act] b = Relu(n)
    [second] c = Conv<pads = [1, 1, 1, 1]>(b, w2)
    [shortcut] d = Conv(x, w3)
    [sum] e = Add(c, d)
    [last] f = Relu(e)
    [after] g = Sigmoid(f)
    [end] y = Mul(f, g)
}"""


def block():
    """A residual block; its weights become initializers, so that they may be folded and laid out anew."""
    model = parsed(BLOCK)
    generator = np.random.default_rng(0)
    for value in list(model.graph.inputs)[1:]:
        array = generator.uniform(0.5, 1, value.shape.numpy()).astype(FLOAT)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
        model.graph.inputs.remove(value)
    return model


def test_fused_convolutions_cover_the_sum_and_the_activation_that_they_took_in():
    times = time_kernels(block(), {"x": np.ones((1, 8, 8, 8), FLOAT)}, runs=4)
    found = {cover[0]: set(cover) for cover in covers(times)}
    assert {"first", "norm", "act"} in found.values()
    assert {node for cover in found.values() for node in cover} >= {
        "first", "norm", "act", "second", "shortcut", "sum", "last", "after", "end"
    }  # fmt: skip
    assert Counter(node for cover in covers(times) for node in cover).most_common(1)[0][1] == 1
    adding = found["second"] if "sum" in found["second"] else found["shortcut"]
    if len(adding) > 1:  # where the processor has the blocked layout; elsewhere the sum runs by itself
        assert adding - {"second", "shortcut"} == {"sum", "last"}
    assert all(kernel.microseconds.shape == (4,) for kernel in times)
    assert all(kernel.microseconds.dtype == np.float64 for kernel in times)


@pytest.mark.parametrize("build", [small_models.residual_net, small_models.depthwise_net])
def test_every_node_is_covered_once_and_what_was_inserted_covers_none(build):
    model = ir.from_proto(build())
    times = time_kernels(model, images(), runs=2)
    assert Counter(node for cover in covers(times) for node in cover) == Counter(
        str(node.name) for node in model.graph
    )
    assert {kernel.op_type for kernel in times if not kernel.covers} <= {"ReorderInput", "ReorderOutput"}


def test_kernels_come_in_the_order_in_which_they_run():
    model = parsed("""<ir_version: 8, opset_import: ["" : 17]> g (float[4, 4] x) => (float[4, 4] y) {
        a = Sin(x)  b = Cos(x)  c = MatMul(a, b)  y = Softmax(c) }""")
    times = time_kernels(model, {"x": np.ones((4, 4), FLOAT)}, runs=2)
    assert [kernel.op_type for kernel in times][2:] == ["MatMul", "Softmax"]
    assert covers(times)[2:] == [("c",), ("y",)]  # nodes without a name go by their first output


SAME_NAMES = """<ir_version: 8, opset_import: ["" : 17]> g (float[64] x, bool c) => (float[64] y) {
    [n] a = Relu(x)
    [n] b = If(c) <
        then_branch = t () => (float[64] o) { [n] p = Neg(a)  o = Relu(p) },
        else_branch = e () => (float[64] q) { [n] q = Abs(a) }>
    [n] y = Softmax(b) }"""


@pytest.mark.parametrize("condition", [True, False])
def test_names_that_repeat_and_bodies(condition):
    feeds = {"x": np.ones(64, FLOAT), "c": np.array(condition)}
    times = time_kernels(parsed(SAME_NAMES), feeds, runs=3)
    assert [kernel.op_type for kernel in times] == ["Relu", "If", "Softmax"]
    assert [kernel.name for kernel in times] == ["n", "n", "n"]
    assert covers(times) == [("n",)] * 3


LOOP = """<ir_version: 8, opset_import: ["" : 17]> g (float[128, 128] x, int64 n) => (float[128, 128] y) {
    t = Constant<value = bool {1}>()
    a = Relu(x)
    y = Loop(n, t, a) <body = b (int64 i, bool d, float[128, 128] v) => (bool e, float[128, 128] w)
        { e = Identity(d)  w = MatMul(v, v) }> }"""


def test_time_in_a_body_is_the_loops_own():
    feeds = {"x": np.zeros((128, 128), FLOAT), "n": np.array(50)}
    relu, loop = time_kernels(parsed(LOOP), feeds, runs=3)
    assert (relu.op_type, loop.op_type) == ("Relu", "Loop")
    assert np.median(loop.microseconds) > np.median(relu.microseconds)


class TestAFullProfile:
    def test_fewer_runs_fit_where_a_loop_fills_it(self, monkeypatch):
        monkeypatch.setattr(kernels, "MOST_EVENTS", 500)
        feeds = {"x": np.zeros((128, 128), FLOAT), "n": np.array(100)}  # 202 kernels in a run
        times = time_kernels(parsed(LOOP), feeds, runs=50)
        assert [kernel.microseconds.size for kernel in times] == [1, 1]

    def test_a_run_that_never_ends_in_it_is_refused(self, monkeypatch):
        def without_end(profile):
            yield from ()

        monkeypatch.setattr(kernels, "_runs", without_end)
        feeds = {"x": np.zeros((128, 128), FLOAT), "n": np.array(1)}
        with pytest.raises(RuntimeFailure, match="one run fills the profile"):
            time_kernels(parsed(LOOP), feeds)

    def test_lines_that_are_cut_off_end_it(self, tmp_path):
        profile = tmp_path / "p.json"
        args = {"op_name": "A", "provider": "P"}
        kernel = json.dumps({"cat": "Node", "name": "a_kernel_time", "ts": 1, "dur": 2, "args": args})
        run = '{"cat": "Session", "name": "model_run", "ts": 0, "dur": 9, "args": {}}'
        profile.write_text(f"[\n{kernel},\n{run},\n{kernel},\n{kernel[:50]}")
        (only,) = kernels._runs(profile)
        assert [event.name for event in only] == ["a"]


FUNCTIONS = """<ir_version: 8, opset_import: ["" : 18, "local" : 1]>
g (float[4, 8, 16] x) => (float[4, 8, 16] y) {
    [one] a = local.Wave(x)
    [two] b = local.Wave(a)
    [three] y = Mish(b)
}
<domain: "local", opset_import: ["" : 18]>
Wave (u) => (v) { t = Tan(u)  s = Sin(t)  v = Softmax<axis = 1>(s) }"""


def test_what_a_function_was_written_out_to_belongs_to_its_call():
    times = time_kernels(parsed(FUNCTIONS), {"x": np.zeros((4, 8, 16), FLOAT)}, runs=2)
    by_node = {
        name: [kernel.op_type for kernel in times if kernel.covers == (name,)]
        for name in ("one", "two", "three")
    }
    assert by_node["one"][:2] == by_node["two"][:2] == ["Tan", "Sin"]
    assert "Softmax" in by_node["one"]
    assert "Softmax" in by_node["two"]
    assert by_node["three"]
    assert all(kernel.covers for kernel in times if kernel.op_type != "Transpose")


def test_half_precision_that_the_cpu_computes_in_float32():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float16[4, 64] x) => (float16[4, 64] y) {
        [wave] p = Sin(x)  [soft] s = Softmax(p)  [sum] y = Add(s, p) }"""
    times = time_kernels(parsed(text), {"x": np.ones((4, 64), np.float16)}, runs=2)
    assert set(covers(times)) == {("wave",), ("soft",), ("sum",)}
    assert {kernel.op_type for kernel in times if not kernel.covers} <= {"Cast"}
    assert sum("soft" in kernel.covers for kernel in times) >= 1


def test_a_file_and_a_model_in_memory_tell_the_same(tmp_path, folder):
    path = folder / "sub" / "m.onnx"
    path.parent.mkdir()
    onnx.save(
        small_models.residual_net(), path, save_as_external_data=True, location="m.data", size_threshold=0
    )
    from_file = time_kernels(path, images(), runs=2)
    in_memory = time_kernels(ir.from_proto(small_models.residual_net()), images(), runs=2)
    assert [(k.op_type, k.covers) for k in from_file] == [(k.op_type, k.covers) for k in in_memory]


def test_nothing_is_left_behind_and_the_model_is_not_changed(folder):
    model = ir.from_proto(small_models.residual_net())
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    time_kernels(model, images(), runs=1)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    with pytest.raises(RuntimeFailure):
        time_kernels(model, {"x": np.ones(3, FLOAT)})
    assert list(folder.iterdir()) == []


def test_names_stand_in_for_marks_in_what_fails():
    model = parsed("""<ir_version: 8, opset_import: ["" : 17]> g (float[n] x, int64[2] s) => (float[a, b] y) {
        [the_reshape] y = Reshape(x, s) }""")
    with pytest.raises(RuntimeFailure, match="the_reshape") as caught:
        time_kernels(model, {"x": np.ones(7, FLOAT), "s": np.array([2, 2])})
    assert "node#" not in str(caught.value)


def test_a_provider_that_cannot_write_its_graph(monkeypatch):
    """Names alone tell then."""
    start = kernels.start

    def refuses_to_write(model, execution, options, **more):
        if options.optimized_model_filepath:
            raise RuntimeFailure("Unable to serialize model as it contains compiled nodes")
        return start(model, execution, options, **more)

    monkeypatch.setattr(kernels, "start", refuses_to_write)
    (kernel,) = time_kernels(
        parsed(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { [wave] y = Sin(x) }'
        ),
        {"x": np.ones(4, FLOAT)},
        runs=2,
    )
    assert kernel.covers == ("wave",)


def test_misuse(tmp_path):
    model = block()
    feeds = {"x": np.ones((1, 8, 8, 8), FLOAT)}
    with pytest.raises(UsageError, match="one run or more"):
        time_kernels(model, feeds, runs=0)
    with pytest.raises(UsageError, match="one run or more"):
        time_kernels(model, feeds, warm_up=-1)
    with pytest.raises(UsageError, match="2 cores for 1"):
        time_kernels(model, feeds, Execution(pin="0-1"))
    with pytest.raises(ModelError):
        time_kernels(tmp_path / "none.onnx", feeds)
    (tmp_path / "noise.onnx").write_bytes(b"noise" * 9)
    with pytest.raises(ModelError):
        time_kernels(Path(tmp_path / "noise.onnx"), feeds)
