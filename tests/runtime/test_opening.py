import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_files import made_of, random_tensor
from onnx import TensorProto, helper, numpy_helper

from onnxprune import runtime
from onnxprune.errors import ModelError, RuntimeFailure, UsageError
from onnxprune.runtime import library, open_session, opening, optimized, save_optimized

FLOAT = TensorProto.FLOAT


def dense(rows=64, columns=48, seed=0):
    """y = x @ weight + bias"""
    generator = np.random.default_rng(seed)
    return made_of(
        [("MatMul", ["x", "weight"], ["product"]), ("Add", ["product", "bias"], ["y"])],
        [("x", FLOAT, ["batch", rows])],
        [("y", FLOAT, ["batch", columns])],
        [
            numpy_helper.from_array(generator.standard_normal((rows, columns)).astype(np.float32), "weight"),
            numpy_helper.from_array(generator.standard_normal(columns).astype(np.float32), "bias"),
        ],
    )


PLAIN_TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT16", "INT32", "INT64", "UINT64")
ODD_TYPES = ("BOOL", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4")


@pytest.mark.parametrize("name", PLAIN_TYPES + ODD_TYPES)
def test_a_model_in_memory_computes_what_its_file_does(tmp_path, name):
    weight = random_tensor("w", TensorProto.DataType.Value(name))
    proto = made_of(
        [("Cast", ["w"], ["wide"], {"to": FLOAT}), ("Add", ["x", "wide"], ["y"])],
        [("x", FLOAT, [40, 30])],
        [("y", FLOAT, [40, 30])],
        [weight],
    )
    path = tmp_path / "m.onnx"
    onnx.save(proto, path)
    feeds = {"x": np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32)}
    expected = feeds["x"] + numpy_helper.to_array(weight).astype(np.float32)
    for model in (ir.from_proto(proto), path, str(path)):
        for optimize in ("none", "basic", "all"):
            result = open_session(model, optimize=optimize).run(feeds)["y"]
            np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("data_type", "dtype"),
    [
        (TensorProto.BFLOAT16, ml_dtypes.bfloat16),
        (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
        (TensorProto.FLOAT16, np.float16),
    ],
)
def test_inputs_and_outputs_of_types_that_numpy_lacks(data_type, dtype):
    proto = made_of(
        [("Identity", ["x"], ["y"]), ("Cast", ["x"], ["wide"], {"to": FLOAT})],
        [("x", data_type, ["n", 4])],
        [("y", data_type, ["n", 4]), ("wide", FLOAT, ["n", 4])],
    )
    session = open_session(ir.from_proto(proto))
    assert session.inputs["x"] == ((None, 4), np.dtype(dtype))
    x = np.array([[0.5, 1.5, -2, 448]]).astype(dtype)
    result = session.run({"x": x})
    assert result["y"].dtype == dtype
    np.testing.assert_array_equal(result["y"].astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(result["wide"], x.astype(np.float32))
    assert list(session.run({"x": x}, ["wide"])) == ["wide"]


def test_scalars_keep_their_rank():
    proto = made_of(
        [("Identity", ["x"], ["y"])],
        [("x", TensorProto.BFLOAT16, [])],
        [("y", TensorProto.BFLOAT16, [])],
    )
    result = open_session(ir.from_proto(proto)).run({"x": np.array(2, ml_dtypes.bfloat16)})["y"]
    assert result.shape == ()
    assert result == 2


def test_tensors_stay_alive_with_the_session():
    model = ir.from_proto(dense())
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
    weight = model.graph.initializers["weight"].const_value.numpy().copy()
    bias = model.graph.initializers["bias"].const_value.numpy().copy()
    session = open_session(model, optimize="none", prepack=False)
    del model, value
    gc.collect()
    _ = [np.full((64, 48), np.nan, np.float32) for _ in range(100)]  # would land where freed arrays were
    x = np.ones((3, 64), np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ weight + bias, rtol=1e-5)


def test_weights_are_read_in_place():
    """The zero-copy claim itself: without prepacking, the session sees a write to the caller's array."""
    model = ir.from_proto(dense())
    array = np.zeros((64, 48), np.float32)
    model.graph.initializers["weight"].const_value = ir.Tensor(array, name="weight")
    session = open_session(model, optimize="none", prepack=False)
    x = np.ones((1, 64), np.float32)
    before = session.run({"x": x})["y"]
    array += 1
    np.testing.assert_allclose(session.run({"x": x})["y"], before + 64, rtol=1e-5)


@pytest.mark.parametrize("optimize", ["none", "basic", "all"])
def test_weights_that_the_optimizer_permutes(optimize):
    """ONNX Runtime permutes such a weight under its own name: one handed over in place would be stale."""
    weight = np.random.default_rng(0).standard_normal((24, 36)).astype(np.float32)
    proto = made_of(
        [
            ("Transpose", ["x"], ["t"], {"perm": [1, 0]}),
            ("Add", ["t", "w"], ["s"]),
            ("Transpose", ["s"], ["y"], {"perm": [1, 0]}),
        ],
        [("x", FLOAT, [36, 24])],
        [("y", FLOAT, [36, 24])],
        [numpy_helper.from_array(weight, "w")],
    )
    x = np.random.default_rng(1).standard_normal((36, 24)).astype(np.float32)
    result = open_session(ir.from_proto(proto), optimize=optimize).run({"x": x})["y"]
    np.testing.assert_allclose(result, x + weight.T, rtol=1e-6)


def test_subgraphs_see_large_tensors_of_the_main_graph_and_keep_their_own():
    outer = np.arange(600, dtype=np.float32)
    inner = outer * 2
    info = helper.make_tensor_value_info("out", FLOAT, [600])
    then = helper.make_graph([helper.make_node("Identity", ["outer"], ["out"])], "then", [], [info])
    other = helper.make_graph(
        [helper.make_node("Add", ["outer", "inner"], ["out"])],
        "else",
        [],
        [info],
        [numpy_helper.from_array(inner, "inner")],
    )
    proto = made_of(
        [("If", ["c"], ["y"], {"then_branch": then, "else_branch": other})],
        [("c", TensorProto.BOOL, [])],
        [("y", FLOAT, [600])],
        [numpy_helper.from_array(outer, "outer")],
    )
    session = open_session(ir.from_proto(proto))
    np.testing.assert_array_equal(session.run({"c": np.array(True)})["y"], outer)
    np.testing.assert_array_equal(session.run({"c": np.array(False)})["y"], outer + inner)


def test_functions_and_initializers_that_are_inputs_too():
    body = helper.make_function(
        "custom", "Double", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 21)],
    )  # fmt: skip
    weight = np.random.default_rng(0).standard_normal((20, 20)).astype(np.float32)
    proto = made_of(
        [("MatMul", ["x", "w"], ["p"]), ("Double", ["p"], ["y"], {"domain": "custom"})],
        [("x", FLOAT, [1, 20]), ("w", FLOAT, [20, 20])],
        [("y", FLOAT, [1, 20])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto.functions.append(body)
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    session = open_session(ir.from_proto(proto))
    assert session.input_names == ("x",)
    x = np.ones((1, 20), np.float32)
    np.testing.assert_allclose(session.run({"x": x})["y"], 2 * x @ weight, rtol=1e-5)


def test_external_data_is_found_beside_the_file(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "m.onnx"
    onnx.save(dense(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    monkeypatch.chdir(tmp_path)
    x = np.ones((2, 64), np.float32)
    expected = open_session(ir.from_proto(dense())).run({"x": x})["y"]
    np.testing.assert_array_equal(open_session(path).run({"x": x})["y"], expected)
    np.testing.assert_array_equal(open_session(ir.load(path)).run({"x": x})["y"], expected)


def test_a_large_tensor_that_nobody_reads():
    proto = dense()
    proto.graph.initializer.append(random_tensor("unread", TensorProto.FLOAT, (64, 64)))
    assert open_session(ir.from_proto(proto), optimize="none").run({"x": np.ones((2, 64), np.float32)})


@pytest.mark.parametrize("in_memory", [False, True])
def test_sizes_that_are_declared_as_0_are_free(tmp_path, in_memory):
    proto = made_of(
        [("Relu", ["x"], ["h"]), ("Neg", ["h"], ["y"])],
        [("x", FLOAT, [0, 4])],
        [("y", FLOAT, [0, 4])],
    )
    path = tmp_path / "m.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    session = open_session(ir.from_proto(proto) if in_memory else path)
    for rows in (0, 3):
        assert session.run({"x": np.ones((rows, 4), np.float32)})["y"].shape == (rows, 4)
    with pytest.raises(RuntimeFailure, match="x for the following indices index: 1 Got: 5 Expected: 4"):
        session.run({"x": np.ones((3, 5), np.float32)})


def test_extra_outputs():
    session = open_session(ir.from_proto(dense()), extra_outputs=["product"])
    assert session.output_names == ("y", "product")
    result = session.run({"x": np.ones((2, 64), np.float32)})
    bias = numpy_helper.to_array(dense().graph.initializer[1])
    np.testing.assert_allclose(result["product"] + bias, result["y"], rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="in memory"):
        open_session("m.onnx", extra_outputs=["product"])


class TestFailures:
    def one_line_failure(self, capfd, call):
        with pytest.raises(RuntimeFailure) as caught:
            call()
        message = str(caught.value)
        assert "\n" not in message
        assert len(message) < 320
        assert capfd.readouterr() == ("", "")
        return message

    def test_a_graph_that_onnx_runtime_refuses(self, capfd):
        proto = made_of([("NoSuchOperator", ["x"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [1])])
        message = self.one_line_failure(capfd, lambda: open_session(ir.from_proto(proto), label="bad.onnx"))
        assert message.startswith("bad.onnx: ")
        assert "NoSuchOperator" in message

    def test_a_file_that_is_no_model(self, tmp_path, capfd):
        path = tmp_path / "noise.onnx"
        path.write_bytes(b"\x00\x1b[31mnoise" * 20)
        with pytest.raises(ModelError, match=r"noise\.onnx: is damaged, or no ONNX model") as caught:
            open_session(path)
        assert str(caught.value).isprintable()
        assert capfd.readouterr().err == ""

    def test_no_file(self, tmp_path):
        for path in (tmp_path / "none.onnx", tmp_path):
            with pytest.raises(ModelError, match="no such model file"):
                open_session(path)

    def test_control_characters_of_the_model_are_escaped(self, capfd):
        proto = made_of([("Relu", ["x"], ["y"])], [("x", FLOAT, [1])], [("y", FLOAT, [1])])
        proto.graph.node[0].op_type = "No\x1b[2J\nSuch"
        message = self.one_line_failure(capfd, lambda: open_session(ir.from_proto(proto)))
        assert "\x1b" not in message

    @pytest.mark.parametrize(
        "feeds",
        [
            {},
            {"x": np.ones((2, 63), np.float32)},
            {"x": np.ones((2, 64), np.float64)},
            {"x": np.ones((2, 64), np.float32), "z": np.ones(1, np.float32)},
            {"x": np.array(["text"])},
        ],
    )
    def test_feeds_that_do_not_fit(self, capfd, feeds):
        session = open_session(ir.from_proto(dense()), label="m.onnx")
        message = self.one_line_failure(capfd, lambda: session.run(feeds))
        assert message.startswith("m.onnx: run failed: ")

    def test_a_failure_inside_the_graph(self, capfd):
        proto = made_of(
            [("Reshape", ["x", "shape"], ["y"])],
            [("x", FLOAT, ["n"]), ("shape", TensorProto.INT64, [2])],
            [("y", FLOAT, ["a", "b"])],
        )
        session = open_session(ir.from_proto(proto))
        feeds = {"x": np.ones(7, np.float32), "shape": np.array([2, 2])}
        self.one_line_failure(capfd, lambda: session.run(feeds))

    def test_providers(self):
        with pytest.raises(UsageError, match="did you mean 'cuda'"):
            open_session(ir.from_proto(dense()), provider="cudaa")
        missing = next(name for name in runtime.PROVIDERS if name not in runtime.available_providers())
        with pytest.raises(
            RuntimeFailure, match=rf"'{missing}' is not in.*it has: .*cpu.*pip install onnxruntime"
        ):
            open_session(ir.from_proto(dense()), provider=missing)
        assert (
            open_session(ir.from_proto(dense()), provider="CPUExecutionProvider")
            .providers[0]
            .startswith("CPU")
        )

    def test_a_provider_that_falls_back_silently_is_an_error(self, monkeypatch):
        """ONNX Runtime opens the session on CPU when CUDA's libraries are missing."""
        monkeypatch.setattr(library.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        monkeypatch.setattr(library.onnxruntime, "preload_dlls", lambda: print("Failed to load libcudnn"))
        native = library.onnxruntime.InferenceSession

        def on_cpu(source, options, providers, **more):
            return native(source, options, providers=["CPUExecutionProvider"], **more)

        monkeypatch.setattr(library.onnxruntime, "InferenceSession", on_cpu)
        with pytest.raises(RuntimeFailure, match="did not start: Failed to load libcudnn"):
            open_session(ir.from_proto(dense()), provider="cuda")


@pytest.mark.skipif("cuda" not in runtime.available_providers(), reason="ONNX Runtime without CUDA")
def test_cuda_computes_what_the_cpu_does():
    feeds = {"x": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)}
    expected = open_session(ir.from_proto(dense())).run(feeds)["y"]
    result = open_session(ir.from_proto(dense()), provider="cuda").run(feeds)["y"]
    np.testing.assert_allclose(result, expected, rtol=1e-2, atol=1e-2)  # TF32 has 10 bits


@pytest.mark.parametrize("in_memory", [True, False])
def test_save_optimized_folds_batch_norm(tmp_path, in_memory):
    channels = 40
    generator = np.random.default_rng(0)
    vectors = [generator.uniform(0.5, 1.5, channels).astype(np.float32) for _ in range(4)]
    proto = made_of(
        [
            ("Conv", ["x", "w"], ["c"]),
            ("BatchNormalization", ["c", "v0", "v1", "v2", "v3"], ["y"]),
        ],
        [("x", FLOAT, [1, 8, 4, 4])],
        [("y", FLOAT, [1, channels, 4, 4])],
        [
            numpy_helper.from_array(generator.standard_normal((channels, 8, 1, 1)).astype(np.float32), "w"),
            *(numpy_helper.from_array(vector, f"v{i}") for i, vector in enumerate(vectors)),
        ],
    )
    path = tmp_path / "in.onnx"
    onnx.save(proto, path)
    out = tmp_path / "out.onnx"
    save_optimized(ir.from_proto(proto) if in_memory else path, out, "basic")
    assert [node.op_type for node in onnx.load(out).graph.node] == ["Conv"]
    feeds = {"x": generator.standard_normal((1, 8, 4, 4)).astype(np.float32)}
    expected = open_session(path).run(feeds)["y"]
    np.testing.assert_allclose(open_session(out).run(feeds)["y"], expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeFailure, match="cannot optimize"):
        save_optimized(path, tmp_path / "no" / "such" / "folder.onnx")


def test_save_optimized_writes_a_second_file_for_large_models(tmp_path, monkeypatch):
    monkeypatch.setattr(optimized, "_ONE_FILE_BYTES", 5000)
    path = tmp_path / "in.onnx"
    onnx.save(dense(), path, save_as_external_data=True, location="in.data", size_threshold=0)
    save_optimized(path, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").stat().st_size >= 64 * 48 * 4
    x = np.ones((2, 64), np.float32)
    expected = open_session(path).run({"x": x})["y"]
    np.testing.assert_allclose(open_session(tmp_path / "out.onnx").run({"x": x})["y"], expected, rtol=1e-5)


def test_save_optimized_refuses_noise(tmp_path):
    (tmp_path / "noise.onnx").write_bytes(b"noise" * 9)
    with pytest.raises(ModelError, match=r"noise\.onnx: is a text file"):
        save_optimized(tmp_path / "noise.onnx", tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_import_writes_nothing_into_home_and_disables_telemetry(tmp_path):
    code = "import onnxprune.runtime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert list(tmp_path.iterdir()) == []


def test_a_large_tensor_that_nobody_reads_beside_a_branch():
    """ONNX Runtime drops it where there are bodies, and failed when it was handed over."""
    model = ir.from_proto(
        onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
            g (float[2] x, bool c) => (float[2] y) {
                y = If(c) <then_branch = t () => (float[2] o) { o = Neg(x) },
                           else_branch = e () => (float[2] o) { o = Abs(x) }> }""")
    )
    for name in ("unused", "unused_too"):
        tensor = ir.tensor(np.ones(1000, np.float32), name=name)
        model.graph.register_initializer(ir.Value(name=name, const_value=tensor))
    session = open_session(model, optimize="none", prepack=False)
    result = session.run({"x": np.array([1, -2], np.float32), "c": np.array(True)})
    np.testing.assert_array_equal(result["y"], [-1, 2])


def test_nothing_is_done_to_the_output_of_a_process_where_several_threads_may_open(monkeypatch):
    printed_to = []
    create = opening.create
    monkeypatch.setattr(opening, "create", lambda *given: printed_to.append(sys.stdout) or create(*given))
    before = sys.stdout
    with ThreadPoolExecutor(4) as pool:
        sessions = list(pool.map(lambda _: open_session(ir.from_proto(dense())), range(8)))
    assert len(sessions) == 8
    assert all(stream is before for stream in (*printed_to, sys.stdout))
