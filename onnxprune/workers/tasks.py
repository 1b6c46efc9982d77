"""What happens inside a worker: what runs tasks is built once and kept; errors come back whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import OnnxPruneError
from onnxprune.workers.host import working

_stopped: Callable[[], bool] = lambda: False  # noqa: E731 # one per process: tasks know no worker


class Stopped(Exception):
    """Nobody waits for the result of this task any more."""


def check_stop() -> None:
    """Leave a task early once it is of no use any more; may be called often.

    Raises:
        Stopped: whoever asked is gone.
    """
    if _stopped():
        raise Stopped


@dataclass(frozen=True, slots=True)
class Failure:
    """What came instead of a result.

    Attributes:
        error: of the user's concern: it is raised again where the result is waited for.
    """

    error: OnnxPruneError


class Bench:
    """What runs tasks, built when the first one comes.

    Args:
        build: makes it.
        arguments: of ``build``.
        stopped: tells whether nobody waits any more.
    """

    def __init__(
        self, build: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._build, self._arguments, self._stopped = build, arguments, stopped
        self._runner: Callable[[Any], Any] | None = None

    def run(self, task: Any) -> Any:
        """Return what a task gives, or a `Failure`; other errors are bugs, and raised."""
        global _stopped
        _stopped = self._stopped
        try:
            with working():
                check_stop()
                if self._runner is None:
                    self._runner = self._build(*self._arguments)
                return self._runner(task)
        except OnnxPruneError as error:
            return Failure(error)
        finally:
            _stopped = _never


def _never() -> bool:
    return False


def opened(answer: Any) -> Any:
    """Return a result, or raise what came instead of it."""
    if isinstance(answer, Failure):
        raise answer.error
    return answer
