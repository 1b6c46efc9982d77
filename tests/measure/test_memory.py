import json
import os
import stat
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import ModelError, RuntimeFailure
from onnxprune.measure import memory
from onnxprune.measure.memory import measure_memory
from onnxprune.runtime import Execution

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux only")


def write_model(path, width=2000, op_type="MatMul"):
    weight = np.random.default_rng(0).standard_normal((width, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node(op_type, ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@linux_only
def test_weights_and_outputs_are_counted(tmp_path):
    """15 MiB of weights, held twice for a while, and 8 MiB that a run with a batch of 1000 writes."""
    path = write_model(tmp_path / "m.onnx")
    result = measure_memory(path, batch=1000)
    assert result.reason is None
    assert 14 < result.steady_mib < 25
    assert result.load_peak_mib > result.steady_mib + 10
    assert result.steady_mib + 6 < result.run_peak_mib
    assert measure_memory(path).run_peak_mib < result.load_peak_mib - 6  # the peak of loading is over
    small = measure_memory(write_model(tmp_path / "small.onnx", width=100))
    assert small.steady_mib < 10
    json.dumps(result.as_dict())


@linux_only
def test_feeds_of_the_users_own_and_relative_paths(tmp_path, monkeypatch):
    """The process must not import what lies in the current folder."""
    write_model(tmp_path / "m.onnx", width=100)
    (tmp_path / "numpy.py").write_text("raise SystemExit('imported from the current folder')\n")
    monkeypatch.chdir(tmp_path)
    result = measure_memory("m.onnx", feeds={"x": np.ones((3, 100), np.float32)})
    assert result.run_peak_mib is not None


class TestFailures:
    @linux_only
    def test_the_settings_reach_the_process(self, tmp_path):
        path = write_model(tmp_path / "m.onnx", width=10)
        refused = Execution(options=(("device_id", "1"),))
        with pytest.raises(RuntimeFailure, match="cpu provider takes no options"):
            measure_memory(path, execution=refused)
        accepted = Execution(threads=1, spinning=True, arena=False, pin=str(min(os.sched_getaffinity(0))))
        assert measure_memory(path, execution=accepted).steady_mib is not None

    def test_no_file(self, tmp_path):
        with pytest.raises(ModelError, match="no such model file"):
            measure_memory(tmp_path / "none.onnx")

    @linux_only
    def test_a_model_that_onnx_runtime_refuses(self, tmp_path):
        path = write_model(tmp_path / "m.onnx", width=10, op_type="And")  # takes no floats
        with pytest.raises(RuntimeFailure, match=r"m\.onnx.*And") as caught:
            measure_memory(path, feeds={"x": np.ones((1, 10), np.float32)})
        assert "\n" not in str(caught.value)

    @linux_only
    def test_feeds_that_do_not_fit(self, tmp_path):
        path = write_model(tmp_path / "m.onnx", width=10)
        with pytest.raises(RuntimeFailure, match="run failed"):
            measure_memory(path, feeds={"x": np.ones((1, 9), np.float32)})

    @linux_only
    @pytest.mark.parametrize(
        ("script", "timeout_seconds", "match"),
        [
            ("kill -SEGV $$", 60, r"crashed \(SIGSEGV\)"),
            ("exec sleep 60", 0.2, r"took more than 0\.2 s"),
            ("echo oops >&2; exit 1", 60, "the measuring process failed: oops"),
            ("exit 0", 60, "the measuring process failed"),
        ],
    )
    def test_a_process_that_dies(self, tmp_path, monkeypatch, script, timeout_seconds, match):
        """A crash, a hang and a mute process, in place of ONNX Runtime's."""
        fake = tmp_path / "python"
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(memory.sys, "executable", str(fake))
        path = write_model(tmp_path / "m.onnx", width=10)
        with pytest.raises(RuntimeFailure, match=match):
            measure_memory(path, feeds={}, timeout_seconds=timeout_seconds)

    def test_other_systems_say_why(self, tmp_path, monkeypatch):
        monkeypatch.setattr(memory, "_STATUS", tmp_path / "nowhere")
        result = measure_memory(write_model(tmp_path / "m.onnx", width=10))
        assert result.load_peak_mib is result.steady_mib is result.run_peak_mib is None
        assert "Linux only" in result.reason


@linux_only
def test_a_peak_that_cannot_be_reset_is_not_reported(tmp_path, monkeypatch, capsys):
    path = write_model(tmp_path / "m.onnx", width=10)
    task = {"path": str(path), "execution": {}, "feeds": {}}
    task["feeds"]["x"] = memory._pack(np.ones((1, 10), np.float32))
    read, write = os.pipe()
    os.write(write, json.dumps(task).encode())
    os.close(write)
    monkeypatch.setattr(memory, "_CLEAR_REFS", tmp_path / "no" / "such" / "file")
    monkeypatch.setattr(memory, "die_with_parent", lambda: None)
    monkeypatch.setattr(memory, "leave_no_core", lambda: None)
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert memory.main() == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["load_peak_mib"] is figures["run_peak_mib"] is None
    assert figures["steady_mib"] is not None
    assert "does not reset" in figures["reason"]
