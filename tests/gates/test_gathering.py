"""What is measured of real files."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from gate_evidence import answers, changed, half, save_halves
from onnx import TensorProto, helper, numpy_helper
from small_models import mlp, residual_net

from onnxprune.errors import DataError, ModelError, UsageError
from onnxprune.gates import gathering
from onnxprune.gates.evidence import Evidence
from onnxprune.gates.figures import count_models
from onnxprune.gates.gathering import gather_evidence
from onnxprune.gates.judge import judge
from onnxprune.gates.settings import GateSettings
from onnxprune.measure.latency import CONTROL, Timed
from onnxprune.measure.turns import TurnTimes
from onnxprune.runtime import DEFAULT

QUICK = {"pairs": 20}


@pytest.fixture
def halves(tmp_path):
    first, last = save_halves(tmp_path)
    return {"original": first, "final": last}


def test_everything_is_measured(halves):
    settings = GateSettings(segment_drop=0.1, memory_mib=1000)
    data = answers([True] * 60, [True] * 57 + [False] * 3, ["day", "night"] * 30)
    steps, shares = [], []
    evidence = gather_evidence(
        halves, evaluation=data, settings=settings, step=steps.append, progress=shares.append, **QUICK
    )
    original, final = evidence.models
    assert (original.name, final.name) == ("original", "final")
    assert (original.accuracy.value, final.accuracy.value) == (1, 0.95)
    assert original.latency_ratio is None
    assert final.latency_ratio.low <= final.latency_ratio.value <= final.latency_ratio.high
    assert 0 < final.latency_ms <= final.latency_p95_ms
    assert 0 < len(final.latency_samples_ms) <= 1000
    assert (final.params, final.macs) == (32, 32)
    assert final.size_bytes == halves["final"].stat().st_size
    assert final.sparsity == 1 - 4 / 32
    assert [subset.name for subset in evidence.accuracy.subsets] == [
        "all samples", "day", "night", "near the boundary"
    ]  # fmt: skip
    assert evidence.accuracy.agreement.value == 0.95
    assert [memory.name for memory in evidence.memory] == ["original", "final"]
    assert evidence.latency.setting["inputs"] == "evaluation data"
    assert evidence.latency.setting["input_shapes"] == {"x": [1, 8]}
    assert (evidence.operators, evidence.opset, evidence.ir_version) == (("MatMul",), 18, 8)
    assert steps == ["counting", "judging final", "measuring latency", "measuring memory"]
    assert shares[-1] == 1
    assert len(judge(settings, evidence)) == 3


def test_it_outlives_a_file(halves):
    settings = GateSettings(segment_drop=0.1)
    data = answers([True] * 40, [True] * 39 + [False], ["day", "night"] * 20)
    evidence = gather_evidence(halves, evaluation=data, settings=settings, **QUICK)
    again = Evidence.model_validate(json.loads(evidence.model_dump_json()))
    assert again == evidence
    assert judge(settings, again) == judge(settings, evidence)


def test_all_but_times_is_the_same_again(halves):
    settings = GateSettings(accuracy_drop=0.1)
    runs = [
        gather_evidence(halves, evaluation=changed(200, lost=3), settings=settings, **QUICK) for _ in range(2)
    ]
    assert runs[0].accuracy == runs[1].accuracy
    assert runs[0].judged_accuracy == runs[1].judged_accuracy
    timed = {"latency_ratio", "latency_ms", "latency_p95_ms", "latency_samples_ms"}
    counted = [[model.model_dump(exclude=timed) for model in run.models] for run in runs]
    assert counted[0] == counted[1]


def test_without_data_there_is_no_accuracy_and_times_are_of_random_inputs(halves):
    evidence = gather_evidence(
        halves, evaluation=None, settings=GateSettings(latency_ratio=9), latency_batch=3, **QUICK
    )
    assert evidence.accuracy is evidence.judged_accuracy is evidence.models[-1].accuracy is None
    assert evidence.memory == ()
    assert evidence.latency.setting["inputs"] == "random"
    assert evidence.latency.setting["input_shapes"] == {"x": [3, 8]}


def test_a_gate_on_the_95th_percentile_gets_its_rounds(halves):
    settings = GateSettings(latency_p95_ms=10_000)
    evidence = gather_evidence(halves, evaluation=None, settings=settings, **QUICK)
    assert evidence.judged_latency.rounds >= 72
    assert judge(settings, evidence)[0].verdict == "pass"


def test_every_stage_is_timed_against_the_same_original(halves, tmp_path):
    paths = {"original": halves["original"], "cleanup": halves["original"], "prune": halves["final"]}
    paths["nothing"] = tmp_path / "again.onnx"
    paths["nothing"].write_bytes(halves["final"].read_bytes())
    data = changed(50, lost=5)
    evidence = gather_evidence(paths, evaluation=data, settings=GateSettings(), **QUICK)
    assert [model.name for model in evidence.models] == list(paths)
    assert [model.accuracy.value for model in evidence.models] == [1, 1, 0.9, 0.9]
    rounds = {model.latency_ratio.count for model in evidence.models[1:]}
    assert len(rounds) == 1
    assert evidence.models[2].latency_ratio == evidence.models[3].latency_ratio


def test_times_stand_with_the_models_that_took_them(halves, tmp_path, monkeypatch):
    slow = tmp_path / "slow.onnx"
    onnx.save(mlp(), slow)
    seconds = {"original.onnx": 0.004, "slow.onnx": 0.008, "final.onnx": 0.001}

    def timed(original, others, *, seed, **_):
        models = {0: original, CONTROL: original, 1: others[0], 3: others[1]}
        wall = {key: np.full((80, 2), seconds[path.name]) for key, path in sorted(models.items())}
        times = TurnTimes(wall, {key: spent.sum(axis=1) for key, spent in wall.items()})
        return Timed(times, seed, DEFAULT, None, {})

    monkeypatch.setattr(gathering, "time_in_turns", timed)
    paths = {"original": halves["original"], "prune": slow, "quantize": halves["final"]}
    evidence = gather_evidence(paths, evaluation=None, settings=GateSettings(), **QUICK)
    assert [model.latency_ms for model in evidence.models] == pytest.approx([4, 8, 1])
    assert [model.latency_ratio.value for model in evidence.models[1:]] == pytest.approx([2, 0.25])
    assert evidence.judged_latency.ratio.value == pytest.approx(0.25)
    assert evidence.judged_latency.p95_ms.value == pytest.approx(1)
    assert evidence.latency.verdict == "faster"


def test_a_batch_larger_than_the_data_takes_samples_twice(halves):
    evidence = gather_evidence(
        halves, evaluation=changed(3), settings=GateSettings(), latency_batch=5, **QUICK
    )
    assert evidence.latency.setting["input_shapes"] == {"x": [5, 8]}


class TestRefusals:
    def test_one_model(self, halves):
        with pytest.raises(UsageError, match="give both"):
            gather_evidence({"original": halves["original"]}, evaluation=None, settings=GateSettings())

    def test_gates_on_data_without_data(self, halves):
        with pytest.raises(UsageError, match="accuracy_drop needs evaluation data"):
            gather_evidence(halves, evaluation=None, settings=GateSettings(accuracy_drop=0.1))

    def test_data_without_labels(self, halves):
        data = changed(30)
        unlabelled = type(data).from_arrays(dict(data.arrays))
        with pytest.raises(DataError, match="needs labels"):
            gather_evidence(halves, evaluation=unlabelled, settings=GateSettings(accuracy_drop=0.1))

    def test_outputs_that_are_no_numbers(self, halves):
        broken = half(False)
        weight = numpy_helper.to_array(broken.graph.initializer[0]).copy()
        weight[5, 1] = np.nan
        copy = onnx.ModelProto.FromString(broken.SerializeToString())
        copy.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w"))
        onnx.save(copy, halves["final"])
        with pytest.raises(DataError, match="NaN or infinity"):
            gather_evidence(halves, evaluation=changed(30), settings=GateSettings(accuracy_drop=0.5))

    def test_a_metric_that_is_no_number(self, halves, tmp_path, monkeypatch):
        (tmp_path / "nan_metric.py").write_text("def metric(outputs, labels):\n    return float('nan')\n")
        monkeypatch.syspath_prepend(tmp_path)
        settings = GateSettings(accuracy=0.5, higher_is_better=True)
        with pytest.raises(DataError, match="returned nan"):
            gather_evidence(
                halves, evaluation=changed(30), metric="nan_metric:metric", settings=settings, **QUICK
            )

    def test_a_missing_segment(self, halves):
        data = answers([True] * 30, [True] * 30, ["day"] * 30)
        settings = GateSettings(segment_drop=0.1, segments=["dax"])
        with pytest.raises(DataError, match="did you mean 'day'"):
            gather_evidence(halves, evaluation=data, settings=settings)

    def test_a_missing_file(self, halves, tmp_path):
        with pytest.raises(ModelError, match="gone"):
            gather_evidence(
                {**halves, "final": tmp_path / "gone.onnx"}, evaluation=None, settings=GateSettings()
            )

    def test_evidence_of_another_confidence(self, halves):
        evidence = gather_evidence(halves, evaluation=changed(30), settings=GateSettings(), **QUICK)
        with pytest.raises(UsageError, match="measure again"):
            judge(GateSettings(accuracy_drop=0.5, confidence=0.9), evidence)


class TestWhatItUses:
    def test_bodies_and_functions_count_calls_do_not(self, tmp_path):
        function = helper.make_function(
            "local", "Twice", ["a"], ["b"], [helper.make_node("Gelu", ["a"], ["b"], domain="com.microsoft")],
            [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
        )  # fmt: skip
        branch = helper.make_graph(
            [helper.make_node("Tanh", ["x"], ["z"])], "then", [],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
        )  # fmt: skip
        other = helper.make_graph(
            [helper.make_node("Twice", ["x"], ["w"], domain="local")], "else", [],
            [helper.make_tensor_value_info("w", TensorProto.FLOAT, None)],
        )  # fmt: skip
        graph = helper.make_graph(
            [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=other)], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
             helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
        )  # fmt: skip
        opsets = [helper.make_opsetid(*pair) for pair in (("", 17), ("local", 1), ("com.microsoft", 1))]
        model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=9)
        onnx.save(model, tmp_path / "m.onnx")
        found = count_models([("m", tmp_path / "m.onnx")])
        del found["models"]
        assert found == {
            "operators": ("If", "Tanh", "com.microsoft:Gelu"),
            "opset": 17,
            "ir_version": 9,
            "unknown_weights": (),
        }


def counted(path):
    (record,) = count_models([("m", path)])["models"]
    return record


class TestModelRecord:
    def test_external_data_counts(self, tmp_path):
        model = mlp(width=64)
        onnx.save(model, tmp_path / "inline.onnx")
        onnx.save(
            model, tmp_path / "outside.onnx", save_as_external_data=True, location="outside.data",
            size_threshold=0,
        )  # fmt: skip
        inline, outside = (counted(tmp_path / f"{name}.onnx") for name in ("inline", "outside"))
        data = (tmp_path / "outside.data").stat().st_size
        assert outside.size_bytes == (tmp_path / "outside.onnx").stat().st_size + data
        assert outside.zstd_bytes > 0.8 * inline.zstd_bytes
        assert (outside.params, outside.macs) == (inline.params, inline.macs)
        assert outside.sha256 != inline.sha256

    def test_the_hash_covers_external_data(self, tmp_path):
        path = tmp_path / "m.onnx"
        onnx.save(mlp(), path, save_as_external_data=True, location="m.data", size_threshold=0)
        before = counted(path).sha256
        with (tmp_path / "m.data").open("r+b") as stream:
            stream.write(b"\x01")
        assert counted(path).sha256 != before

    def test_a_tied_weight_counts_once(self, tmp_path):
        model = residual_net()
        for weight in model.graph.initializer:
            if weight.name == "block1.conv1.weight":
                half_zero = numpy_helper.to_array(weight).copy()
                half_zero[:8] = 0
                weight.CopyFrom(numpy_helper.from_array(half_zero, weight.name))
        for node in model.graph.node:  # one more use of the weight with the zeros
            tied = {"block2.conv1.weight": "block1.conv1.weight"}
            node.input[:] = [tied.get(name, name) for name in node.input]
        onnx.save(model, tmp_path / "m.onnx")
        sizes = {"stem": 16 * 27, "others": 3 * 16 * 16 * 9, "fc": 160}
        assert counted(tmp_path / "m.onnx").sparsity == pytest.approx(8 * 144 / sum(sizes.values()))

    def test_quantized_zeros_are_zero_points(self, tmp_path):
        weight = np.full((4, 6), 7, np.uint8)
        weight[:, :2] = 128
        weight[0, 5] = 0  # no zero: the zero point is 128
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["y"]),
        ]
        graph = helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 6])],
            [numpy_helper.from_array(weight, "q"), numpy_helper.from_array(np.float32(0.1), "scale"),
             numpy_helper.from_array(np.uint8(128), "zero")],
        )  # fmt: skip
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8),
            tmp_path / "q.onnx",
        )
        assert counted(tmp_path / "q.onnx").sparsity == pytest.approx(8 / 24)

    @pytest.mark.parametrize("computed", [False, True])
    def test_packed_zeros_are_told_or_said_to_be_unknown(self, tmp_path, computed):
        packed = np.full((2, 1, 16), 0x98, np.uint8)  # pairs of 8, which is zero, and 9
        node = helper.make_node(
            "MatMulNBits", ["x", "p" if computed else "q", "scale"], ["y"], domain="com.microsoft",
            K=32, N=2, bits=4, block_size=32,
        )  # fmt: skip
        before = [helper.make_node("Abs", ["q"], ["p"])] if computed else []
        graph = helper.make_graph(
            [*before, node], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
            [numpy_helper.from_array(packed, "q"), numpy_helper.from_array(np.ones(2, np.float32), "scale")],
        )  # fmt: skip
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        path = tmp_path / "n.onnx"
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
        assert counted(path).sparsity == (0 if computed else 0.5)
        unknown = count_models([("n", path)])["unknown_weights"]
        assert (len(unknown) == 1) == computed
