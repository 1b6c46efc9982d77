"""Tasks over processes: every result, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_tasks import build_doubler, build_nothing, build_sleeper, build_threads

from onnxprune.errors import DataError
from onnxprune.workers import Died, Job, Workers, hire
from onnxprune.workers.processes import Processes


def pool_of(build, arguments, count):
    return Processes(Job(build, arguments), count)


pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


def test_every_task_has_its_result(tmp_path):
    with pool_of(build_doubler, (str(tmp_path),), 2) as pool:
        assert sorted(pool.run(range(5))) == [(n, 2 * n) for n in range(5)]


def test_the_one_that_kills_its_worker_has_failed_and_no_other(tmp_path):
    with pool_of(build_doubler, (str(tmp_path), (2,), (0,)), 2) as pool:
        results = dict(pool.run(range(5)))
    assert isinstance(results.pop(2), Died)
    assert results == {n: 2 * n for n in (0, 1, 3, 4)}


def test_what_a_task_raises_is_raised(tmp_path):
    with (
        pool_of(build_doubler, (str(tmp_path),), 1) as pool,
        pytest.raises(ValueError, match="-1 is negative"),
    ):
        list(pool.run([-1]))


def test_what_the_user_must_act_upon_comes_back_as_it_is(tmp_path):
    with pool_of(build_doubler, (str(tmp_path),), 1) as pool, pytest.raises(DataError, match="-5 is far"):
        list(pool.run([-5]))
    with pool_of(build_nothing, (), 1) as pool, pytest.raises(DataError, match="nothing to build from"):
        list(pool.run([0]))


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    with pool_of(build_threads, (), 2) as pool:
        assert dict(pool.run([0])) == {0: ("1", "1")}


def test_few_tasks_start_few_processes():
    assert isinstance(hire(Workers(jobs=2), Job(build_sleeper, ()), 2), Processes)
    assert not isinstance(hire(Workers(jobs=2), Job(build_sleeper, ()), 1), Processes)
    assert not isinstance(hire(Workers(jobs=2), Job(build_sleeper, (), alone=True), 9), Processes)


def test_a_worker_ends_with_the_process_that_started_it(tmp_path):
    """Even if that is killed, and could tell nobody."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_processes import pool_of, build_sleeper\n"
        "with pool_of(build_sleeper, (), 1) as pool:\n"
        "    for _, process in pool.run([0.0, 60.0]):\n"
        "        print(process, flush=True)\n"
    )
    here = str(Path(__file__).parent)
    with subprocess.Popen([sys.executable, "-c", code, here], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    for _ in range(100):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    raise AssertionError("the worker is still there")


def test_leaving_early_leaves_nobody(tmp_path):
    with pool_of(build_sleeper, (), 2) as pool:
        _, process = next(iter(pool.run([0.01, 0.2, 0.2, 0.2])))
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_an_interrupt_is_not_lost_while_workers_start():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with pool_of(build_sleeper, (), 1) as pool:
        list(pool.run([0.0]))
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
