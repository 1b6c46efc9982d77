"""Nothing of ours runs beside a measurement on the same machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune.workers import host
from onnxprune.workers.host import measuring, working

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks of POSIX systems")

CODE = """
import sys, time
from pathlib import Path
from onnxprune.workers import host
host._FILES = tuple(Path(each) for each in sys.argv[2:4])
with getattr(host, sys.argv[1])():
    print("in", flush=True)
    sys.stdin.read()
print("out", flush=True)
"""


class Other:
    """Another process that works or measures until it is told to end."""

    def __init__(self, how):
        command = [sys.executable, "-c", CODE, how, *map(str, host._FILES)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=30)

    def is_in(self, seconds) -> bool:
        os.set_blocking(self.process.stdout.fileno(), False)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.stdout.readline():
                return True
            time.sleep(0.02)
        return False


def test_many_may_work():
    with working(), Other("working") as other:
        assert other.is_in(30)


def test_nobody_works_beside_a_measurement():
    with measuring():
        other = Other("working")
        assert not other.is_in(2)
    with other:
        assert other.is_in(30)


def test_nobody_measures_beside_work_and_work_lets_a_measurement_pass():
    with working():
        first = Other("measuring")
        assert not first.is_in(2)
        later = Other("working")  # there is somebody who waits to measure
        assert not later.is_in(2)
    assert first.is_in(30)
    assert not later.is_in(0.5)
    with first:
        pass
    with later:
        assert later.is_in(30)


def test_a_worker_that_measures_lets_go_of_its_work_for_that():
    with Other("working") as other:
        assert other.is_in(30)
    with working(), measuring(), measuring(), working():
        assert host._held == "measure"
    assert host._held == ""
    assert host._file is None


def test_a_process_that_is_killed_holds_nothing():
    other = Other("measuring")
    assert other.is_in(30)
    other.process.kill()
    other.process.wait()
    with working():
        pass


def test_a_system_without_locks_is_no_obstacle(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "_FILES", (tmp_path / "missing", tmp_path / "gone"))
    with working(), measuring():
        assert host._file is None


def test_what_is_locked_is_there():
    assert all(Path(host.__file__).with_name(name).is_file() for name in ("__init__.py", "host.py"))
