"""Progress of long work. Time stands still in these tests unless they move it."""

from __future__ import annotations

import pytest

from onnxprune_cli import progress
from onnxprune_cli.progress import SECONDS_BETWEEN_LINES, Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def lines(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.usefixtures("clock")
def test_short_work_is_silent(capsys):
    shown = Progress("bench", quiet=False)
    shown.step("measuring latency")
    for done in (0.1, 0.5, 1.0):
        shown.share(done)
    shown.close()
    assert lines(capsys) == []


def test_long_work_prints_a_line_now_and_then(capsys, clock):
    shown = Progress("bench", quiet=False)
    shown.step("measuring latency")
    for done in range(1, 101):
        clock.now += SECONDS_BETWEEN_LINES / 10
        shown.share(done / 100)
    assert lines(capsys)[:2] == [
        "info: onnxprune bench: measuring latency: 10%",
        "info: onnxprune bench: measuring latency: 20%",
    ]
    clock.now += SECONDS_BETWEEN_LINES
    shown.step("measuring size of a\nb")
    assert lines(capsys) == ["info: onnxprune bench: measuring size of a"]


def test_quiet_is_quiet(capsys, clock):
    shown = Progress("bench", quiet=True)
    clock.now += 100 * SECONDS_BETWEEN_LINES
    shown.step("measuring latency")
    shown.share(0.5)
    assert lines(capsys) == []


def test_a_terminal_gets_a_line_that_goes_away(capsys, clock, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = Progress("validate", quiet=False)
    shown.step("running [bold]40[/] samples")
    clock.now += 1
    shown.share(0.5)
    shown.close()
    text = capsys.readouterr().err
    assert "[bold]40[/]" in text
    assert "50%" in text
    assert text.endswith("\x1b[2K")


def test_nothing_draws_behind_the_back_of_a_measurement(clock, monkeypatch):
    import threading

    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    before = threading.active_count()
    shown = Progress("bench", quiet=False)
    shown.step("measuring latency")
    clock.now += 1
    shown.share(0.5)
    assert threading.active_count() == before
    shown.close()
