"""The parts of the loss by hand, what is decided from the first samples, and batch norm."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tuning_models import filled, three_classes, weights_of  # noqa: E402

from onnxprune.data import Dataset  # noqa: E402
from onnxprune.executor.losses import LabelLoss  # noqa: E402
from onnxprune.tuning import Tuning  # noqa: E402
from onnxprune.tuning.loop import tune  # noqa: E402
from onnxprune.tuning.losses import Objective, Target, spread  # noqa: E402
from onnxprune.tuning.objective import First, decide  # noqa: E402


def softmax(values):
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def test_kl_is_that_of_softened_classes_times_the_square_of_the_temperature():
    y, y0, temperature = [1.0, -0.5, 2.0], [0.3, 0.4, -1.0], 3.0
    p, p0 = (softmax([value / temperature for value in values]) for values in (y, y0))
    expected = temperature**2 * sum(a * math.log(a / b) for a, b in zip(p0, p, strict=True))
    found = Target("y", "kl").loss(torch.tensor([y, y]), torch.tensor([y0, y0]), temperature)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_kl_keeps_its_size_at_high_temperatures():
    y0 = torch.tensor([[0.3, 0.4, -1.0]])
    sizes = []
    for temperature in (100.0, 1000.0):
        y = torch.tensor([[1.0, -0.5, 2.0]], requires_grad=True)
        Target("y", "kl").loss(y, y0, temperature).backward()
        sizes.append(float(y.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_kl_of_probabilities_is_that_of_their_scores():
    y, y0 = torch.randn(4, 5), torch.randn(4, 5)
    of_scores = Target("y", "kl").loss(y, y0, 2.0)
    of_shares = Target("y", "kl", probabilities=True).loss(y.softmax(1), y0.softmax(1), 2.0)
    assert float(of_scores) == pytest.approx(float(of_shares), rel=1e-4)


def test_a_spread_makes_one_constant_answer_count_one():
    original = torch.randn(200, 7) * 50 + 3
    target = Target("y", "mse", scale=spread(original))
    constant = original.mean(dim=0).expand_as(original)
    assert float(target.loss(constant, original, 1.0)) == pytest.approx(1.0, rel=1e-5)
    assert spread(torch.full((3, 2), 2.0)) == 4.0, "the same for all samples: its own energy"
    assert spread(torch.zeros(3, 2)) == 1.0


def test_the_whole_loss_weighs_labels_outputs_and_matched_values():
    label_loss = LabelLoss("cross_entropy", "y")
    values = {"y": torch.randn(4, 3), "h": torch.randn(4, 2)}
    original = {"y": torch.randn(4, 3), "h": torch.randn(4, 2)}
    labels = torch.tensor([0, 1, 2, 0])
    outputs, matched = (Target("y", "mse", scale=2.0),), (Target("h", "mse", scale=0.5),)
    found = Objective(label_loss, outputs, matched, 0.7, 2.0)(values, labels, original)
    expected = 0.3 * torch.nn.functional.cross_entropy(values["y"], labels) + 0.7 * (
        (values["y"] - original["y"]).square().mean() / 2
        + (values["h"] - original["h"]).square().mean() / 0.5
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def decided(outputs, original=None, labels=None, **settings):
    tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in outputs.items()}
    there = None if original is None else {n: torch.as_tensor(v) for n, v in original.items()}
    data = {"x": np.zeros((4, 1), np.float32), **({} if labels is None else {"label": np.array(labels)})}
    given = None if labels is None else torch.tensor(labels)
    return decide(Tuning(**settings), Dataset.from_arrays(data), First(tensors, given, there, tuple(outputs)))


SCORES = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
SHARES = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("output", "labels", "settings", "kind", "metric"),
    [
        (SCORES, None, {}, "mse", "divergence"),  # scores, or four coordinates: nobody knows
        (SCORES, None, {"distil_loss": "kl"}, "kl", "agreement"),
        (SHARES, None, {}, "kl", "agreement"),
        (np.log(SHARES), None, {}, "kl", "agreement"),
        (SHARES, None, {"distil_loss": "mse"}, "mse", "divergence"),
        (SCORES, [0, 2, 1, 1], {}, "kl", "top1"),
        (SCORES, [0, 2, 1, 1], {"loss": "none"}, "kl", "top1"),
        (SCORES, [[0.5] * 3] * 4, {}, "mse", "mse"),
        (SCORES[:, :1], None, {"distil_loss": "kl"}, "mse", "divergence"),  # one number is no class
    ],
)
def test_how_outputs_are_compared_is_decided_by_what_is_known(output, labels, settings, kind, metric):
    found = decided({"y": output}, {"y": output}, labels, **settings)
    assert [target.kind for target in found.objective.outputs] == [kind]
    assert found.metric.name == metric
    assert found.objective.distil == (0.7 if labels is not None and settings != {"loss": "none"} else 1.0)


def test_outputs_that_can_not_be_compared_are_listed():
    outputs = {"y": SCORES, "narrow": SCORES[:, :2], "new": SCORES}
    found = decided(outputs, {"y": SCORES, "narrow": SCORES})
    assert [target.name for target in found.objective.outputs] == ["y"]
    reasons = {note.name: note.reason for note in found.notes}
    assert "[4, 2], in the original [4, 3]" in reasons["narrow"]
    assert "the original has no value of that name" in reasons["new"]


BATCH_NORM = """
<ir_version: 9, opset_import: ["" : 17]> f (float[N, 6] x) => (float[N, 3] y)
<float[8, 6] w1, float[8] scale, float[8] shift, float[8] mean, float[8] variance, float[3, 8] w2>
{
    hidden = Gemm<transB = 1>(x, w1)
    normal = BatchNormalization(hidden, scale, shift, mean, variance)
    y = Gemm<transB = 1>(normal, w2)
}
"""


def test_statistics_of_batch_norm_stay_or_move_and_are_resumed(tmp_path):
    import onnx_ir as ir

    model = filled(BATCH_NORM)
    spread_out = np.abs(weights_of(model)["variance"]) + 0.5
    model.graph.initializers["variance"].const_value = ir.tensor(spread_out, name="variance")
    tuned = {}
    for mode in ("eval", "train"):
        settings = Tuning(steps=6, batch=16, batch_norm=mode, checkpoint_every=1)
        tuned[mode] = tune(model, three_classes(), settings, validation=three_classes(30, 1))
        for name in ("mean", "variance"):
            same = np.array_equal(weights_of(tuned[mode].model)[name], weights_of(model)[name])
            assert same == (mode == "eval")
            assert (name in tuned[mode].changed) == (mode == "train")

    def stop(standing):
        if standing.step == 4:
            raise InterruptedError

    run = {"validation": three_classes(30, 1), "checkpoint": tmp_path / "run"}
    with pytest.raises(InterruptedError):
        tune(model, three_classes(), settings, **run, progress=stop)
    again = tune(model, three_classes(), settings, **run, resume=True)
    for name, array in weights_of(tuned["train"].model).items():
        assert weights_of(again.model)[name].tobytes() == array.tobytes()
