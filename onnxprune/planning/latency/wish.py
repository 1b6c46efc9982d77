"""What a user may ask for in time, and on which machine."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.runtime import Execution
from onnxprune.workers import ALONE, Workers

#: Seconds that timing parts may take, where nothing is said.
TIME_LIMIT_SECONDS = 120.0

_MILLISECONDS = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*ms\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class LatencyWish:
    """On which machine a target in time is to be met, and how long finding out may take.

    Attributes:
        percentile: of the times of single runs that is compared: 50 is the median.
        batch: size of the first axis where that is symbolic.
        execution: where and how the model will run.
        time_limit: seconds that timing the parts may take.
        cache: folder for the times of parts; None for none.
        workers: who times parts; time is measured once at a time on every machine.
    """

    percentile: float = 50.0
    batch: int | None = None
    execution: Execution = Execution()  # noqa: RUF009 # frozen
    time_limit: float = TIME_LIMIT_SECONDS
    cache: Path | None = None
    workers: Workers = ALONE

    def __post_init__(self) -> None:
        if not 0 < self.percentile < 100:
            raise UsageError(f"latency_percentile lies between 0 and 100, not {self.percentile:g}")
        if self.batch is not None and self.batch < 1:
            raise UsageError(f"latency_batch is a number from 1 on, not {self.batch}")
        if not self.time_limit > 0:
            raise UsageError(f"time_limit is a number of seconds above 0, not {self.time_limit}")

    @property
    def quantile(self) -> float:
        """The percentile as a share."""
        return self.percentile / 100


def parse_target(target: float | str) -> tuple[float | None, float | None]:
    """Return the share of the original's time, or the milliseconds, that a target in time stands for.

    Args:
        target: ``0.5`` (a share) or ``"12ms"``; the share may be text, too.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(target, str) and (match := _MILLISECONDS.fullmatch(target)) and float(match.group(1)) > 0:
        return None, float(match.group(1))
    try:
        share = float(target)
    except (TypeError, ValueError):
        share = 0.0
    if not 0 < share <= 1:
        raise UsageError(
            f"target_latency is the share of the time that stays, in (0, 1], or as 12ms, not {target!r}"
        )
    return share, None
