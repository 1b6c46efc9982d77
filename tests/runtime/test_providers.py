"""Providers by name, with options; what a GPU would do is played by a fake session of ONNX Runtime's."""

import types

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune import runtime
from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.runtime import PROVIDERS, Execution, Session, library, open_session, providers, sessions

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }"""


def model():
    return ir.from_proto(onnx.parser.parse_model(TEXT))


class TestOptions:
    def test_the_cpu_has_none(self):
        with pytest.raises(UsageError, match="cpu provider takes no options, 'arena_size'"):
            open_session(model(), execution=Execution(options=(("arena_size", "1"),)))

    def test_an_unknown_one_is_named_with_those_that_there_are(self):
        known = {"device_id": "0", "gpu_mem_limit": "1"}
        with pytest.raises(UsageError, match=r"no option 'devise_id' .did you mean 'device_id'.*gpu_mem"):
            providers.check_options("CUDAExecutionProvider", {"devise_id": "1"}, known)
        providers.check_options("CUDAExecutionProvider", {"device_id": "1"}, known)
        providers.check_options("QNNExecutionProvider", {"anything": "1"}, {})  # it tells nothing

    def test_they_reach_onnx_runtime_with_its_own_name_of_the_provider(self, monkeypatch):
        native = library.onnxruntime.InferenceSession
        seen = []

        class OnCpu:
            """Runs on the CPU, and says that it is CUDA."""

            def __new__(cls, source, options, providers, **more):
                seen.append(providers)
                session = native(source, options, providers=["CPUExecutionProvider"], **more)
                names = ["CUDAExecutionProvider", "CPUExecutionProvider"]
                monkeypatch.setattr(session, "get_providers", lambda: names)
                told = {"CUDAExecutionProvider": {"device_id": "1"}}
                monkeypatch.setattr(session, "get_provider_options", lambda: told)
                return session

        monkeypatch.setattr(library.onnxruntime, "InferenceSession", OnCpu)
        monkeypatch.setattr(library.onnxruntime, "preload_dlls", lambda: None)
        monkeypatch.setattr(library.onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
        session = open_session(model(), execution=Execution("cuda", options=(("device_id", "1"),)))
        assert session.device == "cuda"
        assert seen == [[("CUDAExecutionProvider", {"device_id": "1"}), ("CPUExecutionProvider", {})]]
        with pytest.raises(UsageError, match="'device_no'"):
            open_session(model(), execution=Execution("cuda", options=(("device_no", "1"),)))

    def test_a_value_that_onnx_runtime_refuses_is_one_line(self, monkeypatch):
        def refuses(*args, **more):
            raise ValueError("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Failed to parse\nvalue: x")

        monkeypatch.setattr(library.onnxruntime, "InferenceSession", refuses)
        monkeypatch.setattr(
            library.onnxruntime, "get_available_providers", lambda: ["OpenVINOExecutionProvider"]
        )
        with pytest.raises(RuntimeFailure, match="device_type") as caught:
            open_session(model(), execution=Execution("openvino", options=(("device_type", "x"),)))
        assert "\n" not in str(caught.value)


def test_every_provider_is_listed_and_says_how_to_get_it():
    rows = runtime.describe_providers()
    assert [row["provider"] for row in rows] == list(PROVIDERS)
    assert rows[0]["installed"] is True
    assert all(row["in_onnx_runtime"].endswith("ExecutionProvider") for row in rows)
    for row in rows:
        if not row["installed"]:
            with pytest.raises(RuntimeFailure) as caught:
                open_session(model(), provider=row["provider"])
            assert str(caught.value).endswith(row["install"])


class FakeBinding:
    """Records what is bound where."""

    def __init__(self):
        self.inputs, self.outputs, self.log = {}, {}, []

    def bind_ortvalue_input(self, name, value):
        self.inputs[name] = value

    def bind_output(self, name, device, number):
        self.outputs[name] = (device, number)

    def synchronize_inputs(self):
        self.log.append("inputs are there")

    def synchronize_outputs(self):
        self.log.append("outputs are there")


class FakeNative:
    """ONNX Runtime's session, as far as a `Session` asks it, on a GPU with the number 3."""

    def __init__(self, fails=False):
        self.binding = FakeBinding()
        self.fails = fails

    def get_inputs(self):
        return [
            types.SimpleNamespace(name="x", type="tensor(float)", shape=[2, 4]),
            types.SimpleNamespace(name="h", type="tensor(bfloat16)", shape=[2]),
        ]

    def get_outputs(self):
        return [types.SimpleNamespace(name="y", type="tensor(float)", shape=[2, 4])]

    def get_providers(self):
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_options(self):
        return {"CUDAExecutionProvider": {"device_id": "3"}}

    def io_binding(self):
        return self.binding

    def run_with_iobinding(self, binding, options):
        if self.fails:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 700")
        binding.log.append("run")

    def run(self, names, feeds, options):
        return [np.zeros((2, 4), np.float32) for _ in names]


@pytest.fixture
def placed(monkeypatch):
    """Arrays that were put onto a device, as (device, number)."""
    found = []

    def ortvalue_from_numpy(array, device="cpu", number=0):
        found.append((device, number))
        return types.SimpleNamespace(array=array)

    fake = types.SimpleNamespace(
        ortvalue_from_numpy=ortvalue_from_numpy,
        ortvalue_from_numpy_with_onnx_type=lambda array, _: types.SimpleNamespace(array=array),
    )
    monkeypatch.setattr(library.onnxruntime, "OrtValue", fake)
    return found


FEEDS = {"x": np.ones((2, 4), np.float32).T.copy().T, "h": np.ones(2, ml_dtypes.bfloat16)}


class TestBinding:
    def test_inputs_are_placed_once_and_each_run_is_waited_for(self, placed):
        native = FakeNative()
        run = Session(native, "m.onnx").runner(FEEDS)
        assert native.binding.log == ["inputs are there"]
        assert placed == [("cuda", 3)]  # bfloat16 stays in main memory
        assert set(native.binding.inputs) == {"x", "h"}
        assert native.binding.outputs == {"y": ("cuda", 3)}
        assert native.binding.inputs["x"].array.flags.c_contiguous
        run()
        run()
        assert native.binding.log[1:] == ["run", "outputs are there"] * 2
        assert len(placed) == 1

    def test_without_binding_and_without_a_device_arrays_are_handed_over(self, placed):
        native = FakeNative()
        run = Session(native, "m.onnx").runner({"x": FEEDS["x"]}, on_device=False)
        assert native.binding.log == []
        del run
        session = open_session(model())
        assert session.device is None
        np.testing.assert_array_equal(session.runner({"x": FEEDS["x"]})()["y"], FEEDS["x"])

    def test_a_failing_run_is_one_line(self, placed):
        run = Session(FakeNative(fails=True), "m.onnx").runner(FEEDS)
        with pytest.raises(RuntimeFailure, match=r"m\.onnx: run failed: FAIL : CUDA failure 700"):
            run()

    def test_inputs_that_cannot_be_bound_are_one_line(self, monkeypatch):
        def refuses(*args):
            raise RuntimeError("CUDA out of memory\nat allocator")

        monkeypatch.setattr(
            library.onnxruntime, "OrtValue", types.SimpleNamespace(ortvalue_from_numpy=refuses)
        )
        with pytest.raises(RuntimeFailure, match="inputs cannot be bound: CUDA out of memory"):
            Session(FakeNative(), "m.onnx").runner({"x": FEEDS["x"]})

    def test_every_provider_with_a_device_is_known(self):
        assert set(sessions.DEVICES) <= {provider.name for provider in PROVIDERS.values()}

    @pytest.mark.skipif("cuda" not in runtime.available_providers(), reason="ONNX Runtime without CUDA")
    def test_on_a_gpu(self):
        from onnxprune.measure.latency import benchmark

        session = open_session(model(), execution=Execution("cuda", options=(("device_id", "0"),)))
        assert session.device == "cuda"
        session.runner({"x": FEEDS["x"]})()
        result = benchmark(model(), execution=Execution("cuda"), pairs=20)
        assert result.on_device == "cuda"
        assert benchmark(model(), execution=Execution("cuda"), io_binding=False, pairs=20).on_device is None
        with pytest.raises(UsageError, match="no option"):
            open_session(model(), execution=Execution("cuda", options=(("no_such_option", "0"),)))
