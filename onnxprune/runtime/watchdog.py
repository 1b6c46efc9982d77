"""Ends runs that take far longer than a model of that size ever should.

ONNX Runtime looks at a flag between two nodes, and a thread of ours sets it. So a loop without an end, or a
few bytes that ask for 10^13 multiplications, end in one line. A single operator is not interrupted, and
neither is the opening of a model: ``onnxprune --timeout`` ends the whole process.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

#: Sets the limit of a run in seconds; 0 takes it away.
VARIABLE = "ONNXPRUNE_RUN_SECONDS"

#: A run may take so long, and longer for every megabyte of weights and of inputs.
_SECONDS = 30.0
_SECONDS_PER_WEIGHT_MB = 1.0
_SECONDS_PER_INPUT_MB = 20.0

_MB = 1e6
_LOOK_EVERY_SECONDS = 0.25


class Watchdog:
    """Watches the runs of one session.

    Attributes:
        limit_seconds: that a run went beyond, None if none has.

    Args:
        options: of its runs; their ``terminate`` is set once a run has taken too long.
        weight_bytes: of the model.
    """

    def __init__(self, options: Any, weight_bytes: int) -> None:
        self._options = options
        self._weight_bytes = weight_bytes
        self._lock = threading.Lock()
        self._runs: dict[int, tuple[float, int]] = {}
        self._watching = False
        self.limit_seconds: float | None = None

    def begin(self, feeds: Mapping[str, Any]) -> None:
        """Note that a run begins in this thread."""
        size = sum(array.nbytes for array in feeds.values() if isinstance(array, np.ndarray))
        with self._lock:
            self._runs[threading.get_ident()] = (time.monotonic(), size)
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, daemon=True).start()

    def end(self) -> None:
        """Note that the run of this thread is over."""
        with self._lock:
            self._runs.pop(threading.get_ident(), None)
            if self._options.terminate and not self._runs:
                self._options.terminate = False

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY_SECONDS)
            with self._lock:
                if not self._runs:
                    self._watching = False
                    return
                began, size = min(self._runs.values())
                took = time.monotonic() - began
                if took > (limit := self._limit(size)):
                    self.limit_seconds = limit
                    self._options.terminate = True

    def _limit(self, input_bytes: int) -> float:
        chosen = chosen_seconds()
        if chosen is not None:
            return chosen or float("inf")
        weights = self._weight_bytes * _SECONDS_PER_WEIGHT_MB
        return _SECONDS + (weights + input_bytes * _SECONDS_PER_INPUT_MB) / _MB


def chosen_seconds() -> float | None:
    """Return the limit that the environment sets, None if it sets none."""
    try:
        return max(0.0, float(os.environ[VARIABLE]))
    except (KeyError, ValueError):
        return None
