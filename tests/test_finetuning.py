"""finetune: from files to a verified file, with its zeros held."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from tuning_models import classifier, filled, three_classes, weights_of  # noqa: E402

import onnxprune  # noqa: E402
from onnxprune.data import Dataset  # noqa: E402
from onnxprune.errors import DataError, ModelError, PlanError, UsageError, VerificationError  # noqa: E402
from onnxprune.runtime import open_session  # noqa: E402
from onnxprune.tuning import Tuning  # noqa: E402
from onnxprune.tuning.agreement import check_agrees  # noqa: E402
from onnxprune.verification.tuned import verify_tuned  # noqa: E402

SHORT = Tuning(steps=10, batch=8, learning_rate=0.05, evaluate_every=5)

WIDE = """
<ir_version: 9, opset_import: ["" : 17]> f (float[N, 8] x) => (float[N, 3] y)
<float[16, 8] w1, float[16] b1, float[3, 16] w2, float[3] b2>
{ hidden = Gemm<transB = 1>(x, w1, b1) active = Relu(hidden) y = Gemm<transB = 1>(active, w2, b2) }
"""


def wide_data(samples=64):
    random = np.random.default_rng(0)
    x = random.standard_normal((samples, 8)).astype(np.float32)
    return Dataset.from_arrays({"x": x, "label": (x[:, :3]).argmax(axis=1)})


def finetuned(model, data=None, settings=SHORT, validation=0, **more):
    return onnxprune.finetune(
        model, data=data or wide_data(), settings=settings, validation=validation, **more
    )


def zeros_in(model):
    return {name: int((array == 0).sum()) for name, array in weights_of(model).items()}


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2x2"])
def test_zeros_of_a_pruned_model_are_held_with_and_without_the_plan(tmp_path, pattern):
    amount = {} if ":" in pattern and "x" not in pattern else {"amount": 0.5}
    pruned = onnxprune.prune(filled(WIDE), pattern=pattern, **amount)
    for plan in (pruned.plan, None):
        result = finetuned(pruned.model, plan=plan)
        assert zeros_in(result.model) == zeros_in(pruned.model)
        assert weights_of(result.model)["w1"].tobytes() != weights_of(pruned.model)["w1"].tobytes()
        report = onnxprune.save_finetuned(result, tmp_path / "tuned.onnx")
        assert report.passed
        names = [check.name for check in report.checks]
        assert "declared zeros" in names
        assert (f"pattern {pattern}" in names) == (plan is not None and pattern != "unstructured")
        assert [row["tensor"] for row in report.sections["held zeros"]] == ["w1", "w2"]


def test_zeros_may_move_where_that_is_asked_for_and_few_zeros_always_do():
    pruned = onnxprune.prune(filled(WIDE), pattern="unstructured", amount=0.5)
    result = finetuned(pruned.model, hold="none")
    assert zeros_in(result.model)["w1"] == 0
    assert "zeros" in [entry.name for entry in result.report.skipped]
    model = filled(WIDE)
    weights = weights_of(model)["w1"].copy()
    weights[0, :2] = 0
    model.graph.initializers["w1"].const_value = ir.tensor(weights, name="w1")
    assert zeros_in(finetuned(model).model)["w1"] == 0, "2 of 128 are an accident"


def test_a_plan_that_was_not_applied_or_has_no_zeros_is_refused():
    plan = onnxprune.plan(filled(WIDE), pattern="unstructured", amount=0.5)
    with pytest.raises(PlanError, match="apply the plan"):
        finetuned(filled(WIDE), plan=plan)
    with pytest.raises(UsageError, match="no zeros to hold"):
        finetuned(filled(WIDE), plan=onnxprune.plan(filled(WIDE), amount=0.5))
    with pytest.raises(UsageError, match="hold none"):
        finetuned(filled(WIDE), plan=plan, hold="none")
    with pytest.raises(UsageError, match="hold is one of"):
        finetuned(filled(WIDE), hold="all")


def test_a_pruned_student_is_tuned_by_its_original_without_labels(tmp_path):
    original = finetuned(filled(WIDE), settings=replace(SHORT, steps=150)).model
    unlabelled = Dataset.from_arrays({"x": wide_data(256).arrays["x"]})
    pruned = onnxprune.prune(original, amount=0.5)
    long = replace(SHORT, steps=150)
    result = finetuned(pruned.model, unlabelled, long, validation=0.2, teacher=original)
    history = result.report.sections["history"]
    assert history[-1]["divergence"] < history[0]["divergence"] / 2
    judged = finetuned(
        pruned.model, wide_data(256), replace(SHORT, steps=150, distil=1.0), validation=0.2, teacher=original
    )
    rows = {row["model"]: row["top1"]["value"] for row in judged.report.sections["accuracy"]}
    assert rows.keys() == {"original", "before", "after"}
    assert rows["after"] >= rows["before"]


def test_validation_samples_are_set_aside_given_or_left_out():
    data = wide_data(50)
    for validation, tuned, looked in ((0.2, 40, 10), ("0.2", 40, 10), (wide_data(30), 50, 30), (0, 50, 0)):
        section = finetuned(filled(WIDE), data, validation=validation).report.sections["tuning"]
        assert (section["samples"], section["validation samples"]) == (tuned, looked)
    with pytest.raises(UsageError, match="below 1"):
        finetuned(filled(WIDE), data, validation=1.5)
    with pytest.raises(DataError, match="nowhere"):
        finetuned(filled(WIDE), data, validation="nowhere.npz")


def test_a_file_that_is_not_what_was_tuned_is_not_written(tmp_path):
    pruned = onnxprune.prune(filled(WIDE), pattern="unstructured", amount=0.5)
    result = finetuned(pruned.model)
    target = tmp_path / "tuned.onnx"
    weights = weights_of(result.model)["w1"].copy()
    weights[weights == 0] = 1e-30
    leaking = result.model.clone()
    leaking.graph.initializers["w1"].const_value = ir.tensor(weights, name="w1")
    with pytest.raises(VerificationError, match="declared zeros"):
        onnxprune.save_finetuned(replace(result, model=leaking), target)
    with pytest.raises(VerificationError, match="only tuned weights changed: 'b2' was changed"):
        onnxprune.save_finetuned(replace(result, changed=("w1", "b1", "w2")), target)
    other = result.model.clone()
    for node in other.graph:
        if node.op_type == "Relu":
            node.op_type = "Elu"
    with pytest.raises(VerificationError, match="graph unchanged"):
        onnxprune.save_finetuned(replace(result, model=other), target)
    assert not target.exists()


def test_other_zeros_of_a_masked_tensor_are_counted(tmp_path):
    pruned = onnxprune.prune(filled(WIDE), pattern="unstructured", amount=0.5)
    result = finetuned(pruned.model)
    path = tmp_path / "tuned.onnx"
    onnxprune.save_finetuned(result, path)
    (check,) = [
        check
        for check in verify_tuned(path, result.original, result.changed, result.masks)
        if check.name == "declared zeros"
    ]
    assert "there are no others" in check.detail


def test_a_model_that_torch_computes_otherwise_is_refused_before_it_is_tuned(monkeypatch):
    from onnxprune.executor.module import OnnxModule

    right = OnnxModule.forward
    monkeypatch.setattr(
        OnnxModule, "forward", lambda *a, **k: {n: v * 1.01 for n, v in right(*a, **k).items()}
    )
    with pytest.raises(onnxprune.errors.ModelError, match="ONNX Runtime differ by"):
        finetuned(filled(WIDE))


def test_finetune_leaves_its_model_as_it_was():
    model = classifier()
    before = {name: array.copy() for name, array in weights_of(model).items()}
    onnxprune.finetune(model, data=three_classes(), settings=SHORT)
    assert all((weights_of(model)[name] == array).all() for name, array in before.items())


def test_a_run_that_makes_nothing_better_says_that_it_kept_the_weights():
    settings = Tuning(steps=3, learning_rate=1e-9, optimizer="sgd", distil=1.0)
    model = classifier()
    data = Dataset.from_arrays({"x": three_classes().arrays["x"]})
    result = finetuned(model, data, settings, validation=0.2, teacher=model)
    assert result.report.sections["tuning"]["weights of step"] == 0
    assert any("no step was better" in entry.reason for entry in result.report.skipped)


def test_a_model_that_overflows_on_the_samples():
    text = '<ir_version: 9, opset_import: ["" : 17]> f (float[2] x) => (float[2] y) { y = Mul(x, x) }'
    model = ir.from_onnx_text(text)
    probe = SimpleNamespace(inputs={"x": np.full(2, 3e38, np.float32)}, outputs={"y": np.ones(2, np.float32)})
    with pytest.raises(DataError, match="output 'y' holds NaN or infinity before tuning"):
        check_agrees(model, probe, VerificationError, "before tuning")


def wide_with(outputs, nodes):
    """The wide model with more outputs."""
    text = WIDE.replace("(float[N, 3] y)", f"(float[N, 3] y, {outputs})")
    return filled(text.replace("y = Gemm", f"{nodes} y = Gemm"))


@pytest.mark.parametrize(
    ("outputs", "nodes"),
    [
        ("float[16, 8] w1", ""),
        ("float[16, 8] copy", "copy = Identity(w1)"),
        ("float[8, 16] turned", "turned = Transpose(w1)"),
        ("seq(float[N, 16]) both", "both = SequenceConstruct(hidden, active)"),
        ("optional(float[N, 16]) perhaps", "perhaps = Optional(hidden)"),
        ("float[2, K] places", "at = NonZero(active) places = Cast<to = 1>(at)"),
    ],
)
@pytest.mark.filterwarnings("error:Converting a tensor with requires_grad")
def test_outputs_of_every_kind_are_no_obstacle(tmp_path, outputs, nodes):
    model = wide_with(outputs, nodes)
    for options in ({}, {"teacher": wide_with(outputs, nodes)}):
        result = finetuned(model, **options)
        assert weights_of(result.model)["w1"].tobytes() != weights_of(model)["w1"].tobytes()
    assert onnxprune.save_finetuned(result, tmp_path / "tuned.onnx").passed
    samples = {"x": wide_data(4).arrays["x"]}
    assert open_session(tmp_path / "tuned.onnx").run(samples)["y"].shape == (4, 3)


def test_a_model_with_weights_in_attributes_is_tuned_but_for_these(tmp_path):
    numbers = ", ".join(str(number / 200) for number in range(128))
    text = WIDE.replace("<float[16, 8] w1, ", "<int64[2] sizes = {16, 8}, ").replace(
        "{ hidden", f"{{ flat = Constant<value_floats = [{numbers}]>() w1 = Reshape(flat, sizes) hidden"
    )
    model = filled(text)
    result = finetuned(model)
    assert "w2" in result.changed
    assert "flat" not in result.changed
    assert onnxprune.save_finetuned(result, tmp_path / "tuned.onnx").passed


def test_a_model_that_gives_no_float_tensors_has_nothing_to_tune_by():
    text = WIDE.replace("(float[N, 3] y)", "(seq(float[N, 3]) s, int64[N] best)").replace(
        " }\n", " s = SequenceConstruct(y) best = ArgMax<axis = 1, keepdims = 0>(y) }\n"
    )
    unlabelled = Dataset.from_arrays({"x": wide_data().arrays["x"]})
    with pytest.raises(ModelError, match=r"nothing to tune by .*'s' not compared.*'best' not compared"):
        finetuned(filled(text), unlabelled, teacher=filled(text))
    with pytest.raises(DataError, match="fit none of the outputs"):
        finetuned(filled(text))


def test_what_memory_can_not_hold_is_refused_before_anything_is_read(monkeypatch):
    monkeypatch.setattr("onnxprune.machine.memory_bytes", lambda: 1000)
    for tuned in (onnxprune.finetune, onnxprune.prune_gradually):
        with pytest.raises(ModelError, match=r"tuning needs .* more than this machine's memory"):
            tuned(filled(WIDE), data="nowhere.npz")
