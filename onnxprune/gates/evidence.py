"""What gates are judged by: figures of the models of a run, with intervals of the confidence asked for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from onnxprune.measure import intervals
from onnxprune.record import AccuracyRecord, Interval, LatencyRecord, MemoryRecord, ModelRecord, SubsetRecord


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class JudgedSubset(_Facts):
    """The metric on some samples, with intervals of the confidence that the gates ask for.

    Attributes:
        record: as in the report, but for the intervals.
        corrected: the same at the confidence at which all segments together hold; of segments only.
        risen, fallen: sums of what single samples gained and lost, where the metric is a share.
        is_share: each sample's figure lies between 0 and 1, so that intervals hold for any number of them.
    """

    record: SubsetRecord
    corrected: SubsetRecord | None
    risen: float | None
    fallen: float | None
    is_share: bool


class JudgedAccuracy(_Facts):
    """The accuracy of the final model, with intervals of the confidence that the gates ask for.

    Attributes:
        higher_is_better: the direction of the metric, where the settings did not have to say it.
        subsets: all samples, segments that are judged, near the boundary.
        agreement, cosine: as in `AccuracyRecord`.
    """

    higher_is_better: bool | None
    subsets: tuple[JudgedSubset, ...]
    agreement: Interval | None
    cosine: Interval | None


class JudgedLatency(_Facts):
    """Times of the final model, with intervals of the confidence that the gates ask for.

    Attributes:
        ratio, p95_ratio: time of one run / that of the original, at the median and at the 95th percentile.
        control, p95_control: what a second session of the original seems to take.
        p50_ms, p95_ms: milliseconds of one run; None where there were too few rounds to bound them.
        rounds: how many there were.
    """

    ratio: Interval
    p95_ratio: Interval
    control: Interval
    p95_control: Interval
    p50_ms: Interval | None
    p95_ms: Interval | None
    rounds: int


class Evidence(_Facts):
    """What was measured.

    Attributes:
        models: the original first, the final model last.
        accuracy, latency, memory: as a report shows them; None or empty where they were not measured.
        judged_accuracy, judged_latency: what gates are judged by; None likewise.
        confidence: of the intervals of the latter.
        operators: of the final model, with their domain where it is not ONNX's own: ``com.microsoft:QGemm``.
        opset: the ONNX operator set of the final model, its functions' too; 0 where it uses none.
        ir_version: of the final model.
        unknown_weights: those of the final model whose zeros can't be counted, each with the reason.
    """

    models: tuple[ModelRecord, ...]
    accuracy: AccuracyRecord | None = None
    latency: LatencyRecord | None = None
    memory: tuple[MemoryRecord, ...] = ()
    judged_accuracy: JudgedAccuracy | None = None
    judged_latency: JudgedLatency | None = None
    confidence: float = intervals.CONFIDENCE
    operators: tuple[str, ...] | None = None
    opset: int | None = None
    ir_version: int | None = None
    unknown_weights: tuple[str, ...] = ()
