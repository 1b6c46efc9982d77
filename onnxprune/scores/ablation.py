"""Importance of channels from data: what the outputs of the model lose when one channel is zero."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnxprune.calibration.activations import feeds_by_batch
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.messages import quoted
from onnxprune.runtime import Session, open_session
from onnxprune.scores.masked import Masked
from onnxprune.scores.subject import Subject
from onnxprune.types import ChannelGroup, FloatArray

#: Every channel costs a run for each batch.
MOST_CHANNELS = 4096

#: Outputs of one batch that are held at once, in float64: expected, as they came, found, and differences.
_HELD = 5


def change_of_outputs(subject: Subject) -> Mapping[str, FloatArray]:
    """score[c] = sum over outputs of |y(without c) - y|**2 / |y|**2, over all samples

    A channel is taken out as a cut takes it out: every sum over it runs on zeros in its places. This is the
    forward-only counterpart of the gradients of Michel et al. 2019, "Are Sixteen Heads Really Better than
    One?": measured instead of extrapolated, without labels, at one run for each channel and batch. Channels
    are taken out one at a time, so two that do the same both look dispensable. Batches are made smaller where
    their outputs would exceed ``subject.running.limit_bytes``.

    Raises:
        UsageError: there are more than `MOST_CHANNELS` channels.
        DataError: the data does not fit the model, or makes it compute what is not finite.
        LimitMissed: the outputs of a single sample (or fixed batch) exceed the limit.
    """
    masked = Masked.of(subject)
    trials = [(group, channel) for group in masked.groups for channel in range(group.size)]
    if len(trials) > MOST_CHANNELS:
        raise UsageError(
            f"score 'ablation' runs the model once for each of {len(trials)} channels and each batch: take "
            f"activation or wanda, or at most {MOST_CHANNELS} channels (as of --pattern heads)"
        )
    if not trials:
        return {}
    lost = {group.name: np.zeros((group.size, len(masked.outputs))) for group in masked.groups}
    whole = np.zeros(len(masked.outputs))
    session = open_session(masked.model, threads=subject.running.threads)
    size = _batch_within_limit(masked, session, subject)
    batches = list(feeds_by_batch(subject.model, subject.data, batch=size))
    for done, (_, feeds) in enumerate(batches):
        reference = _run(masked, session, feeds, None, 0, subject)
        whole += [float(np.square(output).sum()) for output in reference]
        for number, (group, channel) in enumerate(trials, start=1):
            outputs = _run(masked, session, feeds, group, channel, subject)
            lost[group.name][channel] += [
                float(np.square(output - expected).sum())
                for output, expected in zip(outputs, reference, strict=True)
            ]
            if subject.progress is not None:
                subject.progress((done + number / len(trials)) / len(batches))
    return {name: (figures / np.where(whole > 0, whole, 1)).sum(axis=1) for name, figures in lost.items()}


def _batch_within_limit(masked: Masked, session: Session, subject: Subject) -> int:
    """Return the samples of one run."""
    _, feeds = next(iter(feeds_by_batch(subject.model, subject.data, batch=1)))
    outputs = _run(masked, session, feeds, None, 0, subject)
    needed = _HELD * sum(output.nbytes for output in outputs)
    limit = subject.running.limit_bytes
    if needed > limit:
        raise LimitMissed(
            f"the outputs of one batch take {needed} bytes, more than the limit of {limit}; raise the limit "
            "to that"
        )
    return max(1, min(subject.running.batch, subject.running.limit_bytes // max(1, needed)))


def _run(
    masked: Masked,
    session: Session,
    feeds: Mapping[str, np.ndarray],
    group: ChannelGroup | None,
    channel: int,
    subject: Subject,
) -> list[FloatArray]:
    """Return the outputs, float64, without one channel of a group; those of the model for no group."""
    gone = None if group is None else subject.units[group.name][channel]
    masks = {
        mask.name: (~(mask.labels == gone).any(axis=1)).astype(np.float32).reshape(mask.shape)
        for mask in masked.masks
    }
    results = session.run({**feeds, **masks}, masked.outputs)
    arrays = [results[name].astype(np.float64) for name in masked.outputs]
    for name, array in zip(masked.outputs, arrays, strict=True):
        if not np.isfinite(array).all():
            without = "" if group is None else f" without channel {channel} of {group.name}"
            raise DataError(
                f"{subject.data.source}: output {quoted(name)} is not finite on this data{without}"
            )
    return arrays
