"""Memory that tuning needs."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tuning_models import classifier

from onnxprune.errors import ModelError
from onnxprune.tuning import Tuning
from onnxprune.tuning.room import check_memory

WEIGHTS = 8 * 6 + 8 * 3
STORED_BYTES = 4 * (WEIGHTS + 8 + 3)


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        (Tuning(), 3),
        (Tuning(optimizer="adamw"), 3),
        (Tuning(optimizer="sgd"), 2),
        (Tuning(optimizer="sgd", momentum=0.0), 1),
        (Tuning(device="cuda"), 0),
    ],
)
def test_weights_gradients_and_what_the_optimizer_remembers_must_fit(monkeypatch, settings, copies):
    needed = STORED_BYTES + 4 * WEIGHTS * copies
    monkeypatch.setattr("onnxprune.machine.memory_bytes", lambda: needed)
    check_memory(classifier(), settings)
    monkeypatch.setattr("onnxprune.machine.memory_bytes", lambda: needed - 1)
    with pytest.raises(ModelError, match=r"tuning needs .* tune on a larger machine"):
        check_memory(classifier(), settings)


def test_nothing_is_refused_where_nobody_tells_the_memory(monkeypatch):
    monkeypatch.setattr("onnxprune.machine.memory_bytes", lambda: None)
    check_memory(classifier(), Tuning())
