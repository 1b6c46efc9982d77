"""Settings are refused before anything is read, and learning rates are a function of the step."""

from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.tuning.rates import learning_rate_at
from onnxprune.tuning.settings import Tuning


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 5, "epochs": 1.0}, "exclude"),
        ({"epochs": 0.0}, "epochs"),
        ({"batch": 0}, "batch"),
        ({"accumulate": 0}, "accumulate"),
        ({"optimizer": "adan"}, "did you mean 'adam'"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"learning_rate_schedule": "cosin"}, "did you mean 'cosine'"),
        ({"warm_up": 1.0}, "warm_up"),
        ({"momentum": 1.0}, "momentum"),
        ({"nesterov": True}, "nesterov"),
        ({"optimizer": "sgd", "momentum": 0.0, "nesterov": True}, "nesterov"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip": 0.0}, "clip"),
        ({"precision": "float8"}, "precision"),
        ({"precision": "float16"}, "bfloat16"),
        ({"loss": "entropy"}, "known: auto"),
        ({"distil": 1.5}, "distil"),
        ({"distil_loss": "l1"}, "distil loss"),
        ({"temperature": 0.0}, "temperature"),
        ({"batch_norm": "frozen"}, "batch norm"),
        ({"patience": 0}, "patience"),
        ({"evaluate_every": 0}, "evaluate_every"),
    ],
)
def test_nonsense_is_refused(wrong, named):
    with pytest.raises(UsageError, match=named) as caught:
        Tuning(**wrong)
    assert "\n" not in str(caught.value)


def test_a_loss_of_the_users_own_is_accepted_by_form():
    assert Tuning(loss="package.module:function").loss == "package.module:function"


def test_steps_cover_the_epochs_that_are_asked_for():
    assert Tuning(epochs=2, batch=8, accumulate=2).steps_over(100, 16) == 13  # 200 samples, 16 in a step
    assert Tuning(steps=7).steps_over(100, 8) == 7
    assert Tuning().steps_over(100, 32) == 32  # ten passes
    assert Tuning(epochs=0.01, batch=8).steps_over(10, 8) == 1


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "step"])
def test_a_learning_rate_rises_over_the_warm_up_and_never_exceeds_the_highest(schedule):
    settings = Tuning(learning_rate=0.5, learning_rate_schedule=schedule, warm_up=0.1)
    rates = [learning_rate_at(step, 100, settings) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([0.05 * step for step in range(1, 11)])
    assert max(rates) == 0.5 == rates[10]
    assert all(rate > 0 for rate in rates), "a step with no rate is lost"
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_learning_rates_by_hand():
    def rate(schedule, step):
        return learning_rate_at(
            step, 8, Tuning(learning_rate=1.0, learning_rate_schedule=schedule, warm_up=0.0)
        )

    assert rate("constant", 8) == 1.0
    assert rate("linear", 5) == 0.5
    assert rate("cosine", 5) == pytest.approx(0.5)
    assert [rate("step", step) for step in (4, 5, 6, 7, 8)] == [1.0, 0.1, 0.1, 0.01, 0.01]


def test_one_step_alone_has_the_whole_rate():
    assert learning_rate_at(1, 1, Tuning(learning_rate=0.3)) == 0.3
