"""Learning rates: a function of the step, so that a checkpoint need not hold any state of it.

::

    warm-up    rate * t / (warm-up steps)                     for the first steps; then, with u in [0, 1]
    constant   rate
    linear     rate * (1 - u)
    cosine     rate * (1 + cos(pi * u)) / 2                   (Loshchilov and Hutter 2017, SGDR, eq. 5)
    step       rate, a tenth of it from u = 1/2, a hundredth from u = 3/4    (He et al. 2016, section 4.2)
"""

from __future__ import annotations

import math

from onnxprune.tuning.settings import Tuning


def learning_rate_at(step: int, steps: int, settings: Tuning) -> float:
    """Return the learning rate of one step.

    Args:
        step: its number, from 1 to ``steps``.
        steps: of the whole run.
        settings: the highest rate, its schedule and the share of steps of the warm-up.
    """
    rising = math.ceil(settings.warm_up * steps)
    if step <= rising:
        return settings.rate * step / rising
    done = (step - rising - 1) / max(1, steps - rising)
    if settings.learning_rate_schedule == "linear":
        return settings.rate * (1 - done)
    if settings.learning_rate_schedule == "cosine":
        return settings.rate * (1 + math.cos(math.pi * done)) / 2
    if settings.learning_rate_schedule == "step":
        return settings.rate * (1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01)
    return settings.rate
