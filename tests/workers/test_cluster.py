"""A real cluster of two workers: the same results, files that travel once, and nothing lost with a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worker_tasks import build_doubler, build_missing, build_patient, build_reader, build_sleeper

from onnxprune.errors import DataError, LimitMissed, MissingExtra, WorkersError
from onnxprune.workers import Died, Files, Job, Workers, hire
from onnxprune.workers import cluster as cluster_module

pytest.importorskip("distributed")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills processes")


def crew_of(cluster, build, *arguments, alone=False):
    return hire(Workers(scheduler=cluster.address), Job(build, arguments, alone=alone), 0)


def test_every_task_has_its_result(two_workers, tmp_path):
    with crew_of(two_workers, build_doubler, str(tmp_path)) as crew:
        assert sorted(crew.run(range(7))) == [(n, 2 * n) for n in range(7)]


def test_both_workers_work_at_once(two_workers):
    with crew_of(two_workers, build_sleeper) as crew:
        assert len({process for _, process in crew.run([0.3, 0.3, 0.3, 0.3])}) == 2


def test_where_time_is_measured_one_worker_of_a_host_works(two_workers):
    with crew_of(two_workers, build_sleeper, alone=True) as crew:
        assert len({process for _, process in crew.run([0.05, 0.05, 0.05, 0.05])}) == 1


def folder_of(tmp_path, **contents) -> Files:
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return Files.of_folder(tmp_path)


def test_a_file_travels_to_each_worker_once(two_workers, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "_PIECE_BYTES", 1000)
    contents = {"a": os.urandom(2500), "b": b"", "c": os.urandom(1000)}
    files = folder_of(tmp_path, **contents)
    asked = list(contents) * 4
    with crew_of(two_workers, build_reader, files) as crew:
        for number, (_, folder, content) in crew.run(asked):
            assert content == contents[asked[number]]
            assert folder != str(tmp_path)
        assert crew.sent_bytes == 2 * 3500
    more = folder_of(tmp_path, d=b"new", e=contents["a"])  # some of it is there already, one by another name
    with crew_of(two_workers, build_reader, more) as crew:
        assert {content for _, (_, _, content) in crew.run(["d", "e", "a"])} == {b"new", contents["a"]}
        assert crew.sent_bytes == 2 * len(b"new")


def test_a_file_that_changes_while_it_is_sent_is_not_used(two_workers, tmp_path, monkeypatch):
    files = folder_of(tmp_path, changing=b"before")
    shipment = Files.shipment

    def late(self):
        found = shipment(self)
        (tmp_path / "changing").write_bytes(b"behind")
        return found

    monkeypatch.setattr(Files, "shipment", late)
    with crew_of(two_workers, build_reader, files) as crew, pytest.raises(WorkersError) as refused:
        list(crew.run(["changing"]))
    assert "changed while it was sent" in str(refused.value)


def test_what_a_task_raises_is_raised(two_workers, tmp_path):
    with crew_of(two_workers, build_doubler, str(tmp_path)) as crew:
        with pytest.raises(DataError, match="-5 is far below zero"):
            list(crew.run([-5]))
        with pytest.raises(ValueError, match="-1 is negative"):
            list(crew.run([-1]))
    with crew_of(two_workers, build_missing) as crew, pytest.raises(LimitMissed) as missed:
        list(crew.run([0]))
    assert (missed.value.reached, missed.value.reasons) == (0.75, ("a: one", "b: two"))


def test_leaving_stops_what_runs(two_workers, tmp_path):
    def interrupt(_):
        wait_for(tmp_path / "begun")
        raise KeyboardInterrupt

    with crew_of(two_workers, build_patient, str(tmp_path)) as crew:
        results = crew.run([0])
        crew._done = interrupt
        with pytest.raises(KeyboardInterrupt):
            next(results)
    wait_for(tmp_path / "stopped")


def wait_for(path: Path) -> None:
    for _ in range(3000):
        if path.exists():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path.name} never happened")


def test_a_worker_that_dies_changes_nothing(start_cluster, tmp_path):
    cluster = start_cluster(2)
    with crew_of(cluster, build_doubler, str(tmp_path), (), (1, 4)) as crew:
        assert sorted(crew.run(range(7))) == [(n, 2 * n) for n in range(7)]


def test_a_new_worker_gets_what_it_lacks(start_cluster, tmp_path):
    files = folder_of(tmp_path, a=b"content")
    cluster = start_cluster(1)
    with crew_of(cluster, build_reader, files) as crew:
        results = crew.run(["a"] * 6)
        _, (process, *_) = next(results)
        os.kill(process, signal.SIGKILL)
        rest = [found for _, found in results]
        assert len(rest) == 5
        assert {content for *_, content in rest} == {b"content"}
        assert crew.sent_bytes == 2 * len(b"content")


def test_a_task_that_kills_every_worker_has_failed_and_no_other(start_cluster, tmp_path):
    cluster = start_cluster(2)
    with crew_of(cluster, build_doubler, str(tmp_path), (2,)) as crew:
        results = dict(crew.run(range(5)))
    assert isinstance(results.pop(2), Died)
    assert results == {n: 2 * n for n in (0, 1, 3, 4)}


def test_a_cluster_without_workers_is_given_up(start_cluster, monkeypatch):
    monkeypatch.setattr(cluster_module, "PATIENCE_SECONDS", 1.0)
    with (
        crew_of(start_cluster(0), build_sleeper) as crew,
        pytest.raises(WorkersError, match="has had no worker"),
    ):
        list(crew.run([0.0]))


def test_a_scheduler_that_ends_is_one_line(start_cluster):
    cluster = start_cluster(1)
    with crew_of(cluster, build_sleeper) as crew:
        results = crew.run([0.0] * 50 + [60.0])
        next(results)
        os.killpg(cluster.processes[0].pid, signal.SIGKILL)
        with pytest.raises(WorkersError, match=r"tcp://127.0.0.1:\d+ (was lost|has had no worker)") as lost:
            list(results)
    assert "\n" not in str(lost.value)


def test_other_versions_are_refused(start_cluster, tmp_path):
    cluster = start_cluster(0)
    other = tmp_path / "other"
    info = other / "numpy-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    path = os.pathsep.join([str(other), str(Path(__file__).parents[2]), str(Path(__file__).parent)])
    cluster.start_worker(PYTHONPATH=path)
    cluster.wait_for(1)
    with crew_of(cluster, build_sleeper) as crew, pytest.raises(WorkersError) as refused:
        list(crew.run([0.0]))
    assert "numpy 0.1 (here " in str(refused.value)
    assert "onnxprune" not in str(refused.value)


def test_a_scheduler_that_is_not_there_is_one_line_within_seconds(monkeypatch):
    monkeypatch.setattr(cluster_module, "CONNECT_SECONDS", 0.5)
    started = time.monotonic()
    with pytest.raises(WorkersError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9 "):
        hire(Workers(scheduler="tcp://127.0.0.1:9"), Job(build_sleeper, ()), 1).__enter__()
    assert time.monotonic() - started < 30


def test_without_dask_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'onnxprune\[distributed\]'"):
        hire(Workers(scheduler="tcp://127.0.0.1:9"), Job(build_sleeper, ()), 1)


def test_dask_is_not_imported_where_it_is_not_asked_for():
    code = "import sys, onnxprune.survey\nprint([n in sys.modules for n in ('distributed', 'loky')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[False, False]\n"
