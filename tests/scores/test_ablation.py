"""Ablation against the exact twin of a cut of one channel, which is made by other means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import graph
from generated import generated_model

from onnxprune import plan
from onnxprune.analyze import analyze
from onnxprune.calibration.activations import Running
from onnxprune.data import Dataset
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.feeds import random_feeds
from onnxprune.rewrite.twin import make_twin
from onnxprune.runtime import open_session
from onnxprune.scores import ablation
from onnxprune.scores.on_data import score_on_data
from onnxprune.scores.subject import Subject


def subject_of(model: ir.Model, samples: int = 11, batch: int = 4) -> Subject:
    analysis = analyze(model)
    groups = [group for group in analysis.groups if group.frozen is None]
    shapes = {name: (samples, *shape[1:]) for name, shape in analysis.shapes.input_shapes.items()}
    data = Dataset.from_arrays(random_feeds(model, shapes, 0), "calib.npz")
    return Subject(analysis.model, analysis.channels, groups, analysis.units, data, Running(batch))


def by_twins(model: ir.Model, subject: Subject) -> dict[str, np.ndarray]:
    feeds = dict(subject.data.arrays)
    whole = open_session(model).run(feeds)
    found = {}
    for group in subject.groups:
        found[group.name] = np.zeros(group.size)
        for channel in range(group.size):
            gone = np.zeros(subject.channels.labels.count, np.bool_)
            gone[subject.units[group.name][channel]] = True
            outputs = open_session(make_twin(model, subject.channels, gone)).run(feeds)
            for name, expected in whole.items():
                error = ((outputs[name] - expected).astype(np.float64) ** 2).sum()
                found[group.name][channel] += error / (expected.astype(np.float64) ** 2).sum()
    return found


@pytest.mark.parametrize(
    "proto",
    [
        small_models.mlp(width=6),
        small_models.attention(width=8, heads=2, tokens=3),
        small_models.depthwise_net(width=4),
        small_models.residual_net(width=4),
        generated_model(1, 4),
        generated_model(3, 4),
    ],
    ids=["mlp", "attention", "depthwise", "residual", "generated 1", "generated 3"],
)
def test_scores_are_the_errors_of_exact_twins(proto: onnx.ModelProto) -> None:
    model = ir.from_proto(proto)
    subject = subject_of(model)
    assert subject.groups
    scores = score_on_data(subject, "ablation").channels
    expected = by_twins(model, subject)
    assert set(scores) == set(expected)
    for name, values in scores.items():
        assert values.max() > 0
        np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-9)


def test_a_channel_that_does_nothing_scores_zero() -> None:
    w2 = np.array([[1, 2], [0, 0], [3, 4]], np.float32)
    model = graph(
        "h = MatMul(x, w1)\n r = Relu(h)\n y = MatMul(r, w2)",
        inputs="float[N,4] x",
        constants={
            "w1": np.abs(np.random.default_rng(0).standard_normal((4, 3))).astype(np.float32),
            "w2": w2,
        },
    )
    (scores,) = score_on_data(subject_of(model), "ablation").channels.values()
    assert scores[1] == 0
    assert scores[0] > 0
    assert scores[2] > 0


def test_every_output_counts_equally() -> None:
    """The second output is a thousand times larger, and loses as much of itself."""
    model = graph(
        "h = MatMul(x, w1)\n y = MatMul(h, w2)\n z = Mul(y, thousand)",
        inputs="float[N,4] x",
        outputs="y; z",
        constants={"w1": (4, 3), "w2": (3, 2), "thousand": np.array(1000, np.float32)},
    )
    alone = graph(
        "h = MatMul(x, w1)\n y = MatMul(h, w2)",
        inputs="float[N,4] x",
        constants={"w1": (4, 3), "w2": (3, 2)},
    )
    (both,) = score_on_data(subject_of(model), "ablation").channels.values()
    (one,) = score_on_data(subject_of(alone), "ablation").channels.values()
    np.testing.assert_allclose(both, 2 * one, rtol=1e-5)


def test_too_many_channels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "MOST_CHANNELS", 63)
    data = Dataset.from_arrays({"x": np.zeros((3, 16), np.float32)})
    with pytest.raises(UsageError, match="once for each of 64 channels and each batch: take activation or"):
        plan(ir.from_proto(small_models.mlp()), amount=0.5, score="ablation", data=data)


def test_outputs_that_are_not_finite_are_named() -> None:
    model = graph(
        "h = MatMul(x, w1)\n r = Relu(h)\n k = MatMul(r, w2)\n y = Log(k)",
        inputs="float[N,4] x",
        constants={"w1": (4, 3), "w2": np.zeros((3, 2), np.float32)},
    )
    with pytest.raises(DataError, match=r"calib\.npz: output 'y' is not finite on this data$"):
        score_on_data(subject_of(model), "ablation")


def test_progress_ends_at_one() -> None:
    shares: list[float] = []
    data = Dataset.from_arrays({"x": np.ones((40, 16), np.float32)})
    plan(ir.from_proto(small_models.mlp()), amount=0.5, score="ablation", data=data, progress=shares.append)
    assert shares == sorted(shares)
    assert len(shares) == 2 * 64
    assert shares[-1] == 1


@pytest.mark.parametrize(("samples_per_run", "most"), [(1.0, 1), (3.2, 3), (1000, 4)])
def test_batches_shrink_to_the_limit(
    samples_per_run: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four outputs of eight bytes, five arrays of them at once."""
    subject = subject_of(ir.from_proto(small_models.mlp(width=6)), samples=11, batch=4)
    whole = ablation.change_of_outputs(subject)
    sizes = []
    feeds_by_batch = ablation.feeds_by_batch

    def watched(*arguments: object, batch: int) -> object:
        sizes.append(batch)
        return feeds_by_batch(*arguments, batch=batch)  # type: ignore[arg-type]

    monkeypatch.setattr(ablation, "feeds_by_batch", watched)
    limited = replace(subject, running=Running(4, int(samples_per_run * 4 * 8 * 5)))
    for name, values in ablation.change_of_outputs(limited).items():
        np.testing.assert_allclose(values, whole[name], rtol=1e-5)
    assert sizes[-1] == most


def test_a_limit_below_one_sample_is_missed() -> None:
    subject = subject_of(ir.from_proto(small_models.mlp(width=6)))
    with pytest.raises(LimitMissed, match="outputs of one batch take 160 bytes, more than the limit of 159"):
        ablation.change_of_outputs(replace(subject, running=Running(4, 159)))
