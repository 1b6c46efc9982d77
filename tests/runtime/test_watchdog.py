"""Runs that take too long are ended, whoever runs them; others are left alone."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest

from onnxprune.runtime import watchdog
from onnxprune.runtime.watchdog import VARIABLE, Watchdog


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_LOOK_EVERY_SECONDS", 0.01)
    monkeypatch.delenv(VARIABLE, raising=False)


def ended(options: SimpleNamespace, within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until and not options.terminate:
        time.sleep(0.01)
    return bool(options.terminate)


def test_a_run_beyond_its_limit_is_told_to_end_and_the_next_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, "0.05")
    options = SimpleNamespace(terminate=False)
    dog = Watchdog(options, 0)
    dog.begin({})
    assert ended(options)
    assert dog.limit_seconds == 0.05
    dog.end()
    assert not options.terminate
    dog.begin({})
    dog.end()
    assert not options.terminate


@pytest.mark.parametrize(
    ("weights", "inputs", "chosen", "limit"),
    [
        (0, 0, None, 30.0),
        (5_000_000, 0, None, 35.0),
        (0, 2_000_000, None, 70.0),
        (5_000_000, 0, "7.5", 7.5),
        (0, 0, "0", float("inf")),
        (0, 0, "soon", 30.0),
    ],
)
def test_the_limit_grows_with_the_model_and_its_inputs(
    weights: int, inputs: int, chosen: str | None, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chosen is not None:
        monkeypatch.setenv(VARIABLE, chosen)
    assert Watchdog(SimpleNamespace(terminate=False), weights)._limit(inputs) == limit


def test_inputs_are_measured_and_the_thread_goes_when_there_is_nothing_to_watch() -> None:
    options = SimpleNamespace(terminate=False)
    dog = Watchdog(options, 0)
    dog.begin({"x": np.zeros(1000, np.float32), "words": ["not", "an", "array"]})
    ((_, size),) = dog._runs.values()
    assert size == 4000
    dog.end()
    until = time.monotonic() + 10
    while dog._watching and time.monotonic() < until:
        time.sleep(0.01)
    assert not dog._watching
