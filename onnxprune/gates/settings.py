"""Gates: what may be asked of a model, with the range of each limit."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import onnx
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from onnxprune.data import Dataset
from onnxprune.errors import DataError, UsageError
from onnxprune.measure.metrics import Metric, find_metric
from onnxprune.messages import one_line, quoted
from onnxprune.registry import did_you_mean


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # pydantic takes true for 1
        raise ValueError("must be a number")
    return value


def _size(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        size = handler(_number(value))
    except ValidationError:
        size = 0
    if size < 1:
        raise ValueError('must be a size such as "4 MiB" or "500 kB", or a number of bytes')
    return size


def _names(value: Any) -> Any:
    """Take ``Conv,Relu`` for a list, as it comes from the command line."""
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _operator(name: str) -> str:
    """Refuse a name of no operator: it would forbid nothing."""
    plain = name.removeprefix("ai.onnx:")
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    if ":" in plain or any(mark in plain for mark in "*?[") or plain in known:
        return plain
    hint = did_you_mean(plain, known)
    raise ValueError(f"{quoted(plain)} is no ONNX operator{hint}; those of other domains are DOMAIN:NAME")


_Number: TypeAlias = Annotated[float, BeforeValidator(_number)]
_Whole: TypeAlias = Annotated[int, BeforeValidator(_number), Field(ge=1)]
_Drop: TypeAlias = Annotated[_Number, Field(ge=0)]
_Share: TypeAlias = Annotated[_Number, Field(ge=0, le=1)]
_Most: TypeAlias = Annotated[_Number, Field(gt=0)]
_Bytes: TypeAlias = Annotated[ByteSize, WrapValidator(_size)]
_Names: TypeAlias = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_names), Field(min_length=1)
]

_Operators: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(_operator)], ...], BeforeValidator(_names), Field(min_length=1)
]

_DROP = "in the metric's own units: 0.01 is one point of top1"


class GateSettings(BaseModel):
    """What the result must be. A gate that is left out asks for nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    accuracy: _Number | None = Field(
        None, description="the metric is at least this (at most, where lower is better)"
    )
    accuracy_drop: _Drop | None = Field(None, description=f"most that the metric may lose, {_DROP}")
    accuracy_relative: Annotated[_Number, Field(gt=0, le=1)] | None = Field(
        None, description="least share of the original's metric that is kept"
    )
    segment_drop: _Drop | None = Field(None, description=f"most that any segment may lose, {_DROP}")
    worst_segment: _Number | None = Field(
        None, description="the metric of the worst segment is at least this (at most, where lower is better)"
    )
    segments: _Names | None = Field(
        None, description="segments that the data must have, which alone are judged; all of them by default"
    )
    boundary_drop: _Drop | None = Field(
        None, description=f"most that may be lost where the original is least sure, {_DROP}"
    )
    agreement: _Share | None = Field(
        None, description="least share of samples with the original's highest class"
    )
    cosine: Annotated[_Number, Field(ge=-1, le=1)] | None = Field(
        None, description="least mean cosine between the outputs of the original and of the result"
    )
    latency_ratio: _Most | None = Field(
        None, description="most time of one run, as a share of the original's"
    )
    latency_p95_ratio: _Most | None = Field(None, description="the same at the 95th percentile")
    latency_p50_ms: _Most | None = Field(None, description="most milliseconds of one run, at the median")
    latency_p95_ms: _Most | None = Field(None, description="most milliseconds, at the 95th percentile")
    size: _Bytes | None = Field(None, description='most on disk, with external data: "4 MiB", or bytes')
    size_ratio: _Most | None = Field(None, description="most on disk, as a share of the original's")
    zstd_size: _Bytes | None = Field(None, description="most as zstd stores it: what zeros are worth")
    zstd_ratio: _Most | None = Field(None, description="the same as a share of the original's")
    memory_mib: _Most | None = Field(None, description="most MiB to load and run it, at the peak")
    memory_ratio: _Most | None = Field(None, description="the same as a share of the original's")
    params_ratio: _Most | None = Field(None, description="most parameters, as a share of the original's")
    macs_ratio: _Most | None = Field(
        None, description="most multiply-accumulates, as a share of the original's"
    )
    sparsity: _Share | None = Field(None, description="least share of zeros among the weights")
    operators: _Operators | None = Field(
        None, description='operators that may occur: "Conv", or "com.microsoft:QGemm" of another domain'
    )
    operators_forbidden: _Operators | None = Field(None, description="operators that may not occur")
    opset: _Whole | None = Field(None, description="highest ONNX operator set")
    ir_version: _Whole | None = Field(None, description="highest version of the file format")
    baseline_accuracy_drop: _Drop | None = Field(
        None, description=f"most that may be lost since the last accepted run, {_DROP}"
    )
    baseline_latency_ratio: _Most | None = Field(
        None, description="most time against the original, as a share of what it was in the last accepted run"
    )
    baseline_size_ratio: _Most | None = Field(
        None, description="most on disk, as a share of what it was in the last accepted run"
    )
    inconclusive: Literal["fail", "pass"] = Field(
        "fail",
        description="what becomes of a model that the evidence neither clears nor convicts; a figure "
        "that is missing never passes",
    )
    confidence: Annotated[_Number, Field(ge=0.8, lt=1)] = Field(
        0.95, description="of the intervals that gates are judged by"
    )
    higher_is_better: bool | None = Field(
        None, description="the direction of a metric of your own, module:function"
    )

    def asked(self) -> tuple[str, ...]:
        """Return the names of the gates that are set."""
        return tuple(name for name in GATES if getattr(self, name) is not None)

    def direction(self, metric_direction: bool | None) -> bool | None:
        """Return whether higher is better; the metric knows better than the settings."""
        return self.higher_is_better if metric_direction is None else metric_direction


#: Keys that ask for nothing themselves: they say how others are judged.
HOW = ("segments", "inconclusive", "confidence", "higher_is_better")

#: Those of them that decide what is measured.
MEASURED_BY = ("segments", "confidence")

#: Keys that are gates.
GATES = tuple(name for name in GateSettings.model_fields if name not in HOW)

#: Gates that need evaluation data, the direction of its metric, and the time or memory of runs.
ON_DATA = ("accuracy", "accuracy_drop", "accuracy_relative", "segment_drop", "worst_segment", "boundary_drop",
           "agreement", "cosine", "baseline_accuracy_drop")  # fmt: skip
_OF_THE_METRIC = tuple(name for name in ON_DATA if name not in ("agreement", "cosine"))
ON_TIME = ("latency_ratio", "latency_p95_ratio", "latency_p50_ms", "latency_p95_ms", "baseline_latency_ratio")
ON_MEMORY = ("memory_mib", "memory_ratio")
_BY_SEGMENT = ("segment_drop", "worst_segment")


def check_settings(settings: GateSettings, *, has_data: bool, metric: str) -> None:
    """Find gates that could never be judged, or would pass whatever happens, before anything is measured.

    Args:
        settings: the gates.
        has_data: there is evaluation data.
        metric: what it is judged by.

    Raises:
        UsageError: a gate needs data, or the direction of the metric; or its limit lets everything through.
        DataError: the user's metric can't be imported.
    """
    asked = settings.asked()
    on_data = [name for name in asked if name in ON_DATA]
    if on_data and not has_data:
        raise UsageError(f"gate {on_data[0]} needs evaluation data, and none was given")
    if settings.segments is not None and not any(name in asked for name in _BY_SEGMENT):
        raise UsageError(f"segments says what {' and '.join(_BY_SEGMENT)} judge, and neither is asked for")
    of_metric = [name for name in asked if name in _OF_THE_METRIC]
    if not of_metric:
        return
    found = find_metric(metric)
    known = found.higher_is_better if isinstance(found, Metric) else None
    if settings.direction(known) is None:
        raise UsageError(
            f"gate {of_metric[0]} needs the direction of metric {metric!r}: set higher_is_better to true or "
            "false"
        )
    if known is not None and settings.higher_is_better not in (None, known):
        better = "higher" if known else "lower"
        raise UsageError(f"higher_is_better contradicts metric {metric!r}, of which {better} is better")
    if isinstance(found, Metric):
        _check_kind(found, of_metric)
    if isinstance(found, Metric) and found.classifies:
        _check_shares(settings, of_metric, metric)


def _check_kind(metric: Metric, names: list[str]) -> None:
    """Refuse gates that need what a metric does not have: classes, or a figure of the original's own."""
    for name in names:
        if name == "boundary_drop" and not metric.classifies:
            raise UsageError(f"gate {name} needs classes, and metric {metric.name!r} has none")
        if metric.against == "reference" and name not in ("accuracy", "worst_segment"):
            raise UsageError(
                f"gate {name} needs a figure of the original's own, and metric {metric.name!r} compares with "
                "it: use the gate accuracy"
            )


def _check_shares(settings: GateSettings, names: list[str], metric: str) -> None:
    """Refuse percentages: a metric between 0 and 1 can't lose 1 without being wrong about everything."""
    for name in names:
        limit = getattr(settings, name)
        if name.endswith("_drop") and limit >= 1:
            raise UsageError(
                f"gate {name} = {limit:g} lets everything through: {metric} is a share between 0 and 1, and "
                "one point of it is 0.01"
            )
        if name in ("accuracy", "worst_segment") and not 0 < limit <= 1:
            raise UsageError(f"gate {name} = {limit:g}: {metric} is a share between 0 and 1, such as 0.9")


def check_data(settings: GateSettings, data: Dataset, metric: str) -> tuple[str, ...]:
    """Find out whether data has what the gates need, before anything is run on it.

    Args:
        settings: the gates.
        data: the evaluation data.
        metric: what it is judged by.

    Returns:
        Names of the segments that gates judge; none where no gate asks for them.

    Raises:
        DataError: the data lacks labels, or segments, or one that the settings name.
    """
    found = find_metric(metric)
    if data.labels is None and isinstance(found, Metric) and found.against == "labels":
        raise DataError(
            f"{data.source}: metric {metric!r} needs labels, an array called 'label'; "
            "agreement and cosine need none"
        )
    asked = [name for name in _BY_SEGMENT if name in settings.asked()]
    if not asked:
        return ()
    if data.segments is None:
        raise DataError(f"{data.source}: gate {asked[0]} needs segments, an array called 'segment'")
    there = [str(name) for name in np.unique(data.segments)]
    for name in settings.segments or ():
        if name not in there:
            hint, known = did_you_mean(name, there), one_line(", ".join(there))
            raise DataError(f"{data.source}: has no segment {quoted(name)}{hint}; it has: {known}")
    return tuple(dict.fromkeys(settings.segments or there))
