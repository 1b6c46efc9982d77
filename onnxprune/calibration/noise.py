"""Random inputs in the place of samples, for those who ask for them by name.

What matters on noise says little about what matters on real inputs; so noise is never taken unasked, and
whatever is measured on it says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.feeds import random_feeds
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.shapes import input_shapes
from onnxprune.types import Skipped

#: What users type, alone or with a number of samples behind it, as in ``random:256``.
NAME = "random"

SAMPLES = 128


def is_noise(source: object) -> bool:
    """Return whether data is asked for by the name of noise; a folder of that name is ``./random``."""
    return isinstance(source, str) and source.partition(":")[0] == NAME


def draw_noise(
    model: ir.Model, source: str, seed: int, shapes: Mapping[str, Sequence[int]] | None = None
) -> Dataset:
    """Draw samples for every input of a model, by the rules of `onnxprune.feeds.random_feeds`.

    Args:
        model: not changed.
        source: ``random`` or ``random:N``.
        seed: of all numbers.
        shapes: by input name, where axes other than the batch are symbolic.

    Raises:
        UsageError: N is no positive number, or an input takes no numbers.
        DataError: an input has no axis of samples.
    """
    _, colon, text = source.partition(":")
    if colon and not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"{source!r}: expected {NAME} or {NAME}:N with a number of samples, as {NAME}:256")
    count = int(text) if colon else SAMPLES
    one = dict(input_shapes(model, shapes))
    fixed = 1
    for value in graph_inputs(model):
        name, declared = str(value.name), value.shape
        if declared is None or not len(declared) or not one[name]:
            continue
        first = declared[0]
        if isinstance(first, int) and first > 0:
            fixed = max(fixed, first)
        else:
            one[name] = (1, *one[name][1:])
    # one run after the other: inputs of a single number follow rules of their own
    drawn = [random_feeds(model, one, seed + number) for number in range(-(-count // fixed))]
    arrays = {name: np.concatenate([np.atleast_1d(feeds[name]) for feeds in drawn]) for name in drawn[0]}
    return replace(Dataset.from_arrays(arrays, f"{NAME}:{count}"), noise=True)


def notes_on_noise(data: Dataset | None) -> list[Skipped]:
    """Return what a report must say of noise."""
    if data is None or not data.noise:
        return []
    reason = "calibration was random noise, not real inputs: what depends on it is not to be trusted"
    return [Skipped(data.source, reason)]
