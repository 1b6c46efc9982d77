"""Losses against their formulas, written down a second time."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.errors import DataError
from onnxprune.sensitivity.losses import choose_loss
from onnxprune.sensitivity.references import References

GENERATOR = np.random.default_rng(0)
SAMPLES, CLASSES = 7, 4
SCORES = GENERATOR.standard_normal((SAMPLES, CLASSES)).astype(np.float32)
FIELD = GENERATOR.standard_normal((SAMPLES, 3, 5)).astype(np.float32) + 40
LABELS = GENERATOR.integers(0, CLASSES, SAMPLES)
PARTS = (slice(0, 4), slice(4, 7))


@pytest.fixture
def stored(tmp_path):
    def store(**outputs):
        for number, part in enumerate(PARTS):
            for place, output in enumerate(outputs.values()):
                np.save(tmp_path / f"{number}_{place}.npy", output[part])
        shapes = tuple(output.shape[1:] for output in outputs.values())
        return References(tmp_path, tuple(outputs), shapes, PARTS)

    return store


def judged(loss, references, outputs, labels=None):
    tally = loss.start()
    for number, part in enumerate(PARTS):
        whole = references.batch(number)
        batch = [outputs[name][part] for name in loss.outputs]
        tally.add(batch, [whole[p] for p in loss.places], None if labels is None else labels[part])
    return tally.result()


def moved(array, by=0.3):
    return (array + by * np.random.default_rng(1).standard_normal(array.shape)).astype(np.float32)


def test_divergence_is_relative_to_the_spread_over_samples(stored):
    references = stored(scores=SCORES, field=FIELD)
    loss = choose_loss(None, None, references, "data")
    assert (loss.name, loss.outputs) == ("divergence", ("scores", "field"))
    other = {"scores": moved(SCORES), "field": moved(FIELD)}
    expected = np.mean(
        [
            np.square(other[name].astype(float) - y0).sum() / np.square(y0 - y0.mean(axis=0)).sum()
            for name, y0 in (("scores", SCORES.astype(float)), ("field", FIELD.astype(float)))
        ]
    )
    assert judged(loss, references, other) == pytest.approx(expected, rel=1e-6)
    assert judged(loss, references, {"scores": SCORES, "field": FIELD}) == 0
    means = {n: np.broadcast_to(y.mean(axis=0), y.shape) for n, y in (("scores", SCORES), ("field", FIELD))}
    assert judged(loss, references, means) == pytest.approx(1, rel=1e-5)


def test_an_output_that_never_varies_counts_by_its_energy(stored):
    constant = np.full((SAMPLES, 3), 2.0, np.float32)
    references = stored(y=constant)
    loss = choose_loss(None, None, references, "data")
    assert judged(loss, references, {"y": constant * 0}) == pytest.approx(1)
    zero = stored(y=constant * 0)
    assert judged(choose_loss(None, None, zero, "data"), zero, {"y": constant}) == pytest.approx(SAMPLES * 12)


def softmax(y):
    powers = np.exp(y.astype(float))
    return powers / powers.sum(axis=-1, keepdims=True)


def test_cross_entropy_of_logits_and_of_probabilities(stored):
    other = moved(SCORES)
    expected = -np.log(softmax(other)[np.arange(SAMPLES), LABELS]).mean()
    references = stored(y=SCORES)
    loss = choose_loss(None, LABELS, references, "data")
    assert (loss.name, loss.classes, loss.probabilities) == ("cross_entropy", True, (False,))
    assert judged(loss, references, {"y": other}, LABELS) == pytest.approx(expected, rel=1e-6)
    references = stored(y=softmax(SCORES).astype(np.float32))
    loss = choose_loss(None, LABELS, references, "data")
    assert loss.probabilities == (True,)
    outputs = {"y": softmax(other).astype(np.float32)}
    assert judged(loss, references, outputs, LABELS) == pytest.approx(expected, rel=1e-5)


def test_a_label_of_no_probability_has_a_finite_loss(stored):
    certain = np.eye(CLASSES, dtype=np.float32)[(LABELS + 1) % CLASSES]
    references = stored(y=certain)
    loss = choose_loss(None, LABELS, references, "data")
    assert judged(loss, references, {"y": certain}, LABELS) == pytest.approx(12 * np.log(10))


def test_kl_is_zero_for_the_original_and_ignores_a_shift(stored):
    references = stored(y=SCORES)
    loss = choose_loss("kl", None, references, "data")
    assert judged(loss, references, {"y": SCORES + 3}) == pytest.approx(0, abs=1e-6)
    other = moved(SCORES)
    p0, p = softmax(SCORES), softmax(other)
    expected = (p0 * np.log(p0 / p)).sum(axis=-1).mean()
    assert judged(loss, references, {"y": other}) == pytest.approx(expected, rel=1e-5)


def test_mse_with_labels_of_the_outputs_shape(stored):
    references = stored(scores=SCORES, field=FIELD)
    labels = moved(FIELD)
    loss = choose_loss(None, labels, references, "data")
    assert (loss.name, loss.outputs) == ("mse", ("field",))
    expected = np.square(FIELD.astype(float) - labels).mean()
    assert judged(loss, references, {"field": FIELD}, labels) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("wanted", "labels", "message"),
    [
        ("cross_entropy", None, "needs labels"),
        (None, np.zeros((SAMPLES, 9), np.int64), "fit none of the outputs"),
        (None, np.full(SAMPLES, CLASSES), "classes 0 to 3"),
        (None, np.array(["cat"] * SAMPLES), "fit none"),
    ],
)
def test_labels_that_do_not_fit_are_refused(stored, wanted, labels, message):
    with pytest.raises(DataError, match=message):
        choose_loss(wanted, labels, stored(scores=SCORES), "data")


def test_kl_needs_classes(stored):
    with pytest.raises(DataError, match="kl"):
        choose_loss("kl", None, stored(y=FIELD[:, :1, 0]), "data")


def test_another_shape_is_refused(stored):
    references = stored(y=SCORES)
    with pytest.raises(DataError, match="shape"):
        choose_loss(None, None, references, "data").start().add([SCORES[:4, :2]], [SCORES[:4]], None)
