"""Progress of long work on stderr: a live line on a terminal, now and then a plain line elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from onnxprune.containment import told
from onnxprune.messages import one_line

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from onnxprune.tuning import Standing

#: Without a terminal: silent for so long, then a line at most this often.
SECONDS_BETWEEN_LINES = 10.0

_SECONDS_BETWEEN_FRAMES = 0.2


class Progress:
    """The step that a command is at, and how much of it is done.

    It draws when it is told something and at no other time: a thread that redraws would disturb what is being
    measured.
    """

    def __init__(self, command: str, quiet: bool) -> None:
        self._command = command
        self._quiet = quiet
        self._step = ""
        self._live: RichProgress | None = None
        self._drawn = time.monotonic()

    def step(self, text: str) -> None:
        """Begin a step."""
        self._step = one_line(text)
        told.step(self._step)
        if self._quiet:
            return
        if sys.stderr.isatty():
            self._draw(None)
        elif self._due(SECONDS_BETWEEN_LINES):
            self._print(self._step)

    def share(self, done: float, note: str = "") -> None:
        """Say which share of the step is done, in [0, 1], and how it goes; may be called often."""
        if self._quiet:
            return
        if sys.stderr.isatty():
            if self._due(_SECONDS_BETWEEN_FRAMES):
                self._draw(done, note)
        elif self._due(SECONDS_BETWEEN_LINES):
            self._print(f"{self._step}: {done:.0%}{f', {note}' if note else ''}")

    def standing(self, standing: Standing) -> None:
        """Say where a run of tuning stands."""
        self.share(standing.share, str(standing))

    def close(self) -> None:
        """Remove the live line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _due(self, seconds: float) -> bool:
        return time.monotonic() - self._drawn >= seconds

    def _print(self, text: str) -> None:
        self._drawn = time.monotonic()
        print(f"info: onnxprune {self._command}: {text}", file=sys.stderr, flush=True)

    def _draw(self, done: float | None, note: str = "") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._drawn = time.monotonic()
        if self._live is None or done is None:
            self.close()
            text = TextColumn("{task.fields[step]}", style="cyan", markup=False)
            columns = (text,) if done is None else (text, BarColumn(), TaskProgressColumn())
            self._live = Progress(
                *columns, console=Console(stderr=True), transient=True, auto_refresh=False,
                redirect_stdout=False, redirect_stderr=False,
            )  # fmt: skip
            self._live.start()
            self._live.add_task("", total=1.0, step=f"{self._step} ...")
        elif len(self._live.columns) == 1:
            self._live.columns = (*self._live.columns, BarColumn(), TaskProgressColumn())
        step = f"{self._step} ... {note}" if note else f"{self._step} ..."
        self._live.update(self._live.task_ids[0], completed=done or 0.0, step=step)
        self._live.refresh()
