"""Gradient scores of single weights against loops in torch, and their way through every pattern."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph

from onnxprune import measure_sensitivity, prune
from onnxprune.calibration.activations import Running
from onnxprune.data import Dataset
from onnxprune.scores.weights_by_gradient import GRADIENT_WEIGHT_SCORERS, Figures, WeightSubject

torch = pytest.importorskip("torch")
functional = torch.nn.functional

SAMPLES, BATCH = 10, 4
MLP = small_models.mlp(width=8)
WEIGHTS = ("fc1.weight", "fc2.weight", "fc3.weight")


def data_for(*shape: int, classes: int | None = None, samples: int = SAMPLES) -> Dataset:
    random = np.random.default_rng(1)
    arrays: dict[str, Any] = {"x": random.standard_normal((samples, *shape)).astype(np.float32)}
    if classes is not None:
        arrays["label"] = random.integers(0, classes, samples)
    return Dataset.from_arrays(arrays, "calib.npz")


def figures_of(score: str, data: Dataset, seed: int = 0) -> Figures:
    subject = WeightSubject(ir.from_proto(MLP), WEIGHTS, data, Running(BATCH), seed)
    return GRADIENT_WEIGHT_SCORERS.get(score)(subject)


def trainable() -> dict[str, Any]:
    arrays = {each.name: onnx.numpy_helper.to_array(each).copy() for each in MLP.graph.initializer}
    return {name: torch.from_numpy(array).requires_grad_() for name, array in arrays.items()}


def logits(w: dict[str, Any], x: Any) -> Any:
    for layer in ("fc1", "fc2"):
        x = functional.linear(x, w[f"{layer}.weight"], w[f"{layer}.bias"]).relu()
    return functional.linear(x, w["fc3.weight"], w["fc3.bias"])


def gradients(w: dict[str, Any], loss: Any) -> dict[str, Any]:
    return dict(zip(WEIGHTS, torch.autograd.grad(loss, [w[name] for name in WEIGHTS]), strict=True))


def test_taylor_and_snip_are_means_of_the_changes_of_batches():
    data = data_for(16, classes=4)
    x, labels = torch.from_numpy(data.arrays["x"]), torch.from_numpy(data.labels)
    w, taylor = trainable(), dict.fromkeys(WEIGHTS, 0.0)
    for start in range(0, SAMPLES, BATCH):
        part = slice(start, start + BATCH)
        g = gradients(w, functional.cross_entropy(logits(w, x[part]), labels[part]))
        changes = {name: (w[name] * g[name]).abs().detach() for name in WEIGHTS}
        taylor = {name: taylor[name] + changes[name] * len(x[part]) / SAMPLES for name in WEIGHTS}
        if start == 0:
            whole = sum(float(change.sum()) for change in changes.values())
            for name, found in figures_of("snip", data).tensors.items():
                np.testing.assert_allclose(found, changes[name] / whole, rtol=1e-4, atol=1e-9)
    for name, found in figures_of("taylor", data).tensors.items():
        np.testing.assert_allclose(found, taylor[name], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("score", ["fisher", "obd"])
def test_squares_are_taken_sample_by_sample(score):
    data = data_for(16, classes=4)
    x, labels = torch.from_numpy(data.arrays["x"]), torch.from_numpy(data.labels)
    w, generator = trainable(), torch.Generator().manual_seed(3)
    squares = {name: torch.zeros_like(w[name]) for name in WEIGHTS}
    for number in range(SAMPLES):
        scores, target = logits(w, x[number : number + 1]), labels[number : number + 1]
        if score == "obd":
            p = scores.detach().double().softmax(dim=-1)
            target = torch.multinomial(p, 1, generator=generator)[0]
        for name, g in gradients(w, functional.cross_entropy(scores, target)).items():
            squares[name] += g.square() / SAMPLES
    found = figures_of(score, data, seed=3)
    assert found.power == 2
    for name, figures in found.tensors.items():
        expected = (w[name].detach().square() * squares[name] / 2).sqrt()
        np.testing.assert_allclose(figures, expected, rtol=1e-4, atol=1e-9)


def test_figures_below_zero_are_ranked_in_their_order():
    figures = Figures({"a": np.array([[-2.0, 0.5]], np.float32), "b": np.array([3.0, -1.0], np.float32)})
    scorer = figures.scorer()
    first, second = scorer.start("a", 0, lambda: iter(())), scorer.start("b", 0, lambda: iter(()))
    ranked = [*first(np.zeros(1)), *first(np.zeros(1)), *second(np.zeros(2))]
    assert ranked == [0, 2.5, 5, 1]


@pytest.mark.parametrize("score", [*GRADIENT_WEIGHT_SCORERS])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block:2x2", "channels"])
def test_every_pattern_takes_every_score(score, pattern):
    amount = {} if pattern == "2:4" else {"amount": 0.5}
    result = prune(
        ir.from_proto(MLP), pattern=pattern, score=score, data=data_for(16), batch=BATCH, align=1, **amount
    )
    assert result.report.passed
    said = [entry.reason for entry in result.plan.skipped if "it has no labels" in entry.reason]
    assert len(said) == (score != "obd")


@pytest.mark.parametrize("score", ["taylor", "taylor_activation", "fisher", "obd", "snip"])
@pytest.mark.parametrize("pattern", ["heads", "head_dim"])
def test_heads_take_every_score(score, pattern):
    model = ir.from_proto(small_models.attention(width=16, heads=4, tokens=3))
    result = prune(model, pattern=pattern, amount=0.5, score=score, data=data_for(3, 16))
    assert result.report.passed
    assert any(len(group.removed) for group in result.plan.groups)


@pytest.mark.parametrize("scope", ["uniform", "global", "owl", "sensitivity"])
def test_every_scope_takes_gradient_scores(scope):
    data = data_for(16, classes=4)
    result = prune(
        ir.from_proto(MLP), pattern="unstructured", amount=0.5, score="fisher", scope=scope, data=data
    )
    removed = sum(mask.size - mask.kept for mask in result.plan.masks.values())
    total = sum(figures.size for figures in figures_of("fisher", data).tensors.values())
    assert removed / total == pytest.approx(0.5, abs=0.1)  # sensitivity has a menu of few


@pytest.mark.parametrize("pattern", ["unstructured", "channels"])
def test_rounds_with_a_repair(pattern):
    result = prune(
        ir.from_proto(MLP), pattern=pattern, amount=0.5, score="taylor", data=data_for(16, samples=64),
        rounds=2, recover="reconstruct", align=1,
    )  # fmt: skip
    assert result.report.passed


def test_the_lowest_figures_of_a_tensor_go():
    data = data_for(16, classes=4)
    result = prune(
        ir.from_proto(MLP),
        pattern="unstructured",
        amount=0.5,
        score="fisher",
        scope="uniform",
        data=data,
        batch=BATCH,
    )
    for name, figures in figures_of("fisher", data).tensors.items():
        kept = result.plan.masks[name].unpack()
        assert figures[~kept].max() <= figures[kept].min()


def test_sensitivity_goes_by_gradient_scores():
    found = measure_sensitivity(
        ir.from_proto(MLP),
        data=data_for(16, classes=4),
        pattern="unstructured",
        score="taylor",
        amounts=(0.3, 0.6),
    )
    assert set(found.curves) == set(WEIGHTS)


def test_a_weight_that_no_output_depends_on_is_left_alone_with_the_reason():
    model = graph(
        "h = MatMul(x, w1)\n y = Relu(h)\n z = MatMul(x, w2)\n k = ArgMax<axis=1>(z)",
        inputs="float[N,4] x", outputs="float[N,3] y, int64[N,1] k", constants={"w1": (4, 3), "w2": (4, 5)},
    )  # fmt: skip
    result = prune(model, pattern="unstructured", amount=0.5, score="taylor", data=data_for(4))
    assert set(result.plan.masks) == {"w1"}
    reasons = {entry.name: entry.reason for entry in result.plan.skipped}
    assert "it has no gradient" in reasons["w2"]


def test_without_torch_one_line_says_what_to_install(tmp_path):
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    onnx.save(MLP, model)
    np.savez(data, **data_for(16).arrays)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from onnxprune_cli.main import execute\n"
        f"given = ['prune', {str(model)!r}, '--data', {str(data)!r}, '-o']\n"
        "half = ['--amount', '0.5']\n"
        f"gradients = execute([*given, {str(tmp_path / 'a.onnx')!r}, '--score', 'taylor', *half])\n"
        f"zeros = execute([*given, {str(tmp_path / 'b.onnx')!r}, '--score', 'obd', '--pattern', '2:4'])\n"
        f"others = execute([*given, {str(tmp_path / 'c.onnx')!r}, '--score', 'wanda', *half])\n"
        "sys.exit(100 * gradients + 10 * zeros + others)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 110, done.stderr
    said = [line for line in done.stderr.splitlines() if "pip install" in line]
    assert len(said) == 2
    assert all("needs torch: pip install 'onnxprune[torch]'" in line for line in said)
    assert (tmp_path / "c.onnx").exists()
    assert not (tmp_path / "a.onnx").exists()
