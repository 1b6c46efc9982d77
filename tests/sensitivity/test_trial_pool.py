"""Tasks over processes: every result, whoever dies."""

from __future__ import annotations

import concurrent.futures.process
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

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


def test_a_worker_that_a_broken_pool_forgets_is_ended_too(tmp_path, monkeypatch):
    """As one that was just being started when another died: nobody ends it, and nobody tells it to end."""
    manager = concurrent.futures.process._ExecutorManagerThread
    ends = manager.terminate_broken

    def forgetful(self, cause):
        self.shutdown_workers = lambda: None
        ends(self, cause)

    monkeypatch.setattr(manager, "terminate_broken", forgetful)
    monkeypatch.setattr(BaseProcess, "terminate", lambda _: None)
    results = {}

    def run():
        with Pool(build_doubler, (str(tmp_path), (2,)), 2) as pool:
            results.update(pool.run(range(5)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert isinstance(results.pop(2), Died)
    assert results == {n: 2 * n for n in (0, 1, 3, 4)}


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
