"""A worker may crash, hang, swell or be killed: the supervisor outlives it and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxprune.containment import describe_crash
from onnxprune.containment.supervisor import GRACE_SECONDS
from onnxprune.containment.temporary import alive

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system starts no worker")

_SAID = ("status", "signal", "why", "timed_out", "subject", "step", "noise")

_FRAME = """
import json, os, signal, subprocess, sys, tempfile, time
from pathlib import Path
from onnxprune.containment import keep_limits, supervise, supervisor, take_signals, told
supervisor.GRACE_SECONDS = {grace}
def work():
{work}
    return 0
ended = supervise(work)
if told.is_heard():  # the worker
    sys.exit(ended.status)
print(json.dumps([getattr(ended, name) for name in {names!r}]))
"""


def program(work: str, grace: float = GRACE_SECONDS) -> list[str]:
    body = "\n".join(f"    {line}" for line in work.strip().splitlines())
    return [sys.executable, "-c", _FRAME.format(work=body, names=_SAID, grace=grace)]


def supervised(work: str, tmp_path: Path, **options: object) -> dict[str, object]:
    """Run a program that supervises ``work``; return what it says of the end."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        program(work), capture_output=True, text=True, env=environment, timeout=60, check=False, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    said = dict(zip(_SAID, json.loads(done.stdout.splitlines()[-1]), strict=True))
    return {**said, "err": done.stderr, "out": done.stdout}


def scratch_left(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.iterdir()]


def test_the_status_of_the_work_is_the_status_of_the_worker(tmp_path):
    assert supervised("return 4", tmp_path)["status"] == 4
    assert scratch_left(tmp_path) == []


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGFPE", "SIGBUS", "SIGILL"])
def test_a_crash_is_half_a_sentence_with_file_and_step(tmp_path, name):
    ended = supervised(
        f"told.subject('m.onnx'); told.step('prove'); os.kill(os.getpid(), signal.{name})", tmp_path
    )
    assert ended["status"] is None
    assert (ended["subject"], ended["step"]) == ("m.onnx", "prove")
    assert ended["why"] == f"a native library crashed ({name}); the model may be damaged or hostile"


def test_running_out_of_memory_is_told_from_a_crash(tmp_path):
    ended = supervised('os.write(2, b"what():  std::bad_alloc"); os.abort()', tmp_path)
    assert ended["why"] == "it ran out of memory"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "out of memory"),
        (signal.SIGXCPU, "CPU time"),
        (99, "signal 99"),
        (signal.SIGXFSZ, "size limit"),
    ],
)
def test_other_signals_have_meanings(number, words):
    assert words in describe_crash(number)


def test_what_native_libraries_print_is_hidden_unless_asked_for(tmp_path):
    work = "os.write(2, b'native noise'); print('ours', file=sys.stderr)"
    quiet = supervised(work, tmp_path)
    assert quiet["err"] == "ours\n"
    assert quiet["noise"] == ""
    loud = supervised(
        f"keep_limits(timeout_seconds=None, memory_bytes=None, show_noise=True); {work}", tmp_path
    )
    assert loud["noise"] == "native noise"


def test_no_amount_of_noise_blocks_the_worker(tmp_path):
    ended = supervised("for _ in range(300): os.write(2, b'x' * 10_000)\nreturn 3", tmp_path)
    assert ended["status"] == 3


def test_time_is_limited(tmp_path):
    started = time.monotonic()
    ended = supervised(
        "keep_limits(timeout_seconds=0.3, memory_bytes=None, show_noise=False)\nwhile True: pass", tmp_path
    )
    assert time.monotonic() - started < 30
    assert ended["timed_out"]
    assert ended["status"] is None


def test_memory_is_limited(tmp_path):
    limits = "keep_limits(timeout_seconds=None, memory_bytes=300 << 20, show_noise=False)"
    work = f"{limits}\ntry:\n    b'x' * (400 << 20)\nexcept MemoryError:\n    return 7"
    assert supervised(work, tmp_path)["status"] == 7
    assert supervised(work.replace("400", "40"), tmp_path)["status"] == 0


def test_the_worker_has_the_limits_only_after_it_asked(tmp_path):
    work = "import resource\nreturn 0 if resource.getrlimit(resource.RLIMIT_CORE)[0] == 0 else 9"
    assert supervised(work, tmp_path)["status"] == 0, "a crash would leave a core file"


def test_temporary_files_of_a_dead_worker_go(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    other = out / f".m.onnx.{os.getpid()}.0123abcd.onnxprune-tmp"
    other.touch()
    work = f"""
folder = Path({str(out)!r})
told.writes_in(folder)
from onnxprune.containment.temporary import temporary_name
(folder / temporary_name("m.onnx")).write_bytes(b"half")
(folder / temporary_name("m.plan")).mkdir()
tempfile.mkdtemp()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert supervised(work, tmp_path)["why"].startswith("it was killed")
    assert [path.name for path in out.iterdir()] == [other.name], "only its own files go"
    assert scratch_left(tmp_path) == ["out"]


def test_processes_of_a_dead_worker_go(tmp_path):
    if sys.platform != "linux":
        pytest.skip("orphans are adopted on Linux only")
    note = tmp_path / "child"
    work = f"""
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
Path({str(note)!r}).write_text(str(child.pid))
os.kill(os.getpid(), signal.SIGSEGV)
"""
    supervised(work, tmp_path)
    assert not alive(int(note.read_text()))


def test_the_worker_dies_with_its_supervisor(tmp_path):
    if sys.platform != "linux":
        pytest.skip("only Linux ends a process whose parent is gone")
    note = tmp_path / "worker"
    work = f"Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"
    with subprocess.Popen(program(work), env={**os.environ, "TMPDIR": str(tmp_path)}) as supervisor:
        worker = _wait_for(note)
        supervisor.kill()
    for _ in range(500):
        if not alive(worker):
            return
        time.sleep(0.01)
    pytest.fail("the worker lives on")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_and_a_worker_that_clears_up_is_let(tmp_path, number):
    note = tmp_path / "worker"
    work = f"""
try:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(9))
    take_signals()
    Path({str(note)!r}).write_text(str(os.getpid()))
    while True:  # a signal that comes right before a sleep is seen after it
        time.sleep(0.01)
finally:
    Path({str(note)!r}).unlink()
"""
    # a busy disk may keep a worker for longer than the usual grace
    ended = _signalled(program(work, grace=60), note, number, tmp_path)
    assert ended[:2] == [9, number]
    assert not note.exists()


def test_a_worker_that_does_not_listen_is_killed(tmp_path, monkeypatch):
    note = tmp_path / "worker"
    work = (
        f"Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)"  # its signals are still blocked
    )
    ended = _signalled(program(work), note, signal.SIGTERM, tmp_path)
    assert ended[:2] == [None, signal.SIGTERM]
    assert not alive(int(note.read_text()))


def _signalled(command: list[str], note: Path, number: int, tmp_path: Path) -> list[object]:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as supervisor:
        _wait_for(note)
        supervisor.send_signal(number)
        out, _ = supervisor.communicate(timeout=60)
    return list(json.loads(out.splitlines()[-1]))


def _wait_for(note: Path) -> int:
    for _ in range(3000):
        if note.exists() and note.read_text():
            return int(note.read_text())
        time.sleep(0.01)
    raise AssertionError("the worker did not start")


def test_abandoned_scratch_folders_go(tmp_path):
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    )
    abandoned = tmp_path / f"onnxprune-scratch-{int(gone.stdout)}-0123abcd"
    living = tmp_path / f"onnxprune-scratch-{os.getpid()}-0123abcd"
    abandoned.mkdir()
    living.mkdir()
    supervised("return 0", tmp_path)
    assert scratch_left(tmp_path) == [living.name]


def test_a_folder_for_temporary_files_is_not_needed(tmp_path):
    tmp_path.chmod(0o500)
    try:
        assert supervised("return 5", tmp_path)["status"] == 5
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("status", [0, 130])
def test_what_was_said_counts_though_the_worker_dies_in_the_end(tmp_path, status):
    """A runtime that crashes while it is unloaded, or takes longer to end than an interrupted worker may."""
    said = supervised(f"told.ends({status})\nos.kill(os.getpid(), signal.SIGSEGV)", tmp_path)
    assert (said["status"], said["why"]) == (status, "")
    assert scratch_left(tmp_path) == []
