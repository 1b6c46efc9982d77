"""Tasks over processes: every result, whoever dies."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnProcess
from pathlib import Path

import pytest

from onnxprune.sensitivity import pool as pool_module
from onnxprune.sensitivity.pool import Died, Pool


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
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 2 * number


class Sleeper:
    """Says who it is, and takes its time."""

    def __call__(self, seconds):
        time.sleep(seconds)
        return os.getpid()


def build_doubler(*arguments):
    return Doubler(*arguments)


def build_sleeper():
    return Sleeper()


pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


def test_every_task_has_its_result(tmp_path):
    with Pool(build_doubler, (str(tmp_path),), 2) as pool:
        assert sorted(pool.run(range(5))) == [(n, 2 * n) for n in range(5)]


def test_the_one_that_kills_its_worker_has_failed_and_no_other(tmp_path):
    with Pool(build_doubler, (str(tmp_path), (2,), (0,)), 2) as pool:
        results = dict(pool.run(range(5)))
    assert isinstance(results.pop(2), Died)
    assert results == {n: 2 * n for n in (0, 1, 3, 4)}


def test_all_workers_have_started_before_the_first_task_is_handed_out(tmp_path, monkeypatch):
    """A pool that starts one while another dies waits for it for ever."""
    log = []
    start, submit = SpawnProcess.start, ProcessPoolExecutor.submit
    monkeypatch.setattr(SpawnProcess, "start", lambda self: (log.append("start"), start(self))[1])
    monkeypatch.setattr(
        ProcessPoolExecutor, "submit", lambda self, *task: (log.append(task[0]), submit(self, *task))[1]
    )
    with Pool(build_doubler, (str(tmp_path),), 3) as pool:
        dict(pool.run(range(5)))
    first_task = log.index(pool_module._run)
    assert log[:first_task].count("start") == log.count("start") == 3


def test_what_a_task_raises_is_raised(tmp_path):
    with Pool(build_doubler, (str(tmp_path),), 1) as pool, pytest.raises(ValueError, match="-1 is negative"):
        list(pool.run([-1]))


def test_leaving_early_leaves_nobody(tmp_path):
    with Pool(build_sleeper, (), 2) as pool:
        _, process = next(iter(pool.run([0.01, 0.2, 0.2, 0.2])))
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_interrupt_is_not_lost_while_workers_start():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with Pool(build_sleeper, (), 1) as pool:
        list(pool.run([0.0]))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
