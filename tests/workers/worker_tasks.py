"""What tests let workers do. Workers of another process import it by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from onnxprune.errors import DataError, LimitMissed
from onnxprune.workers import check_stop


class Doubler:
    """Doubles numbers; some of them are deadly, once or always."""

    def __init__(self, folder, deadly=(), deadly_once=()):
        self.folder, self.deadly, self.deadly_once = folder, deadly, deadly_once

    def __call__(self, number):
        mark = Path(self.folder) / f"{number}.tried"
        first = not mark.exists()
        mark.touch()
        if number in self.deadly or (number in self.deadly_once and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if number < -1:
            raise DataError(f"{number} is far below zero")
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 2 * number


class Threads:
    """Says how many threads libraries may start."""

    def __call__(self, _):
        return os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]


class Sleeper:
    """Says who it is, and takes its time."""

    def __call__(self, seconds):
        time.sleep(seconds)
        return os.getpid()


class Patient:
    """Works until nobody waits any more, and then leaves a note."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, _):
        (self.folder / "begun").touch()
        try:
            while True:
                check_stop()
                time.sleep(0.02)
        finally:
            (self.folder / "stopped").touch()


class Reader:
    """Says what lies in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name):
        return os.getpid(), str(self.folder), (self.folder / name).read_bytes()


class Missing:
    """Misses a limit, and says why."""

    def __call__(self, _):
        raise LimitMissed("it is not enough", reached=0.75, reasons=["a: one", "b: two"])


def build_missing():
    return Missing()


def build_doubler(*arguments):
    return Doubler(*arguments)


def build_sleeper():
    return Sleeper()


def build_patient(folder):
    return Patient(folder)


def build_reader(folder):
    return Reader(folder)


def build_threads():
    return Threads()


def build_nothing():
    raise DataError("there is nothing to build from")
