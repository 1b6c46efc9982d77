"""What a dead process left goes, also where nobody has taken note of its end yet."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.containment import temporary


def test_this_process_is_alive_and_one_that_was_waited_for_is_not() -> None:
    assert temporary.alive(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not temporary.alive(ended.pid)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell")
def test_one_that_has_ended_unnoticed_is_not_alive(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert ended.stdout is not None
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)  # it stays in the list
        os.kill(ended.pid, 0)
        assert not temporary.alive(ended.pid)
        left = tmp_path / f".m.onnx.{ended.pid}.01234567.onnxprune-tmp"
        left.write_bytes(b"half")
        temporary.remove_stale(tmp_path / "m.onnx")
        assert not left.exists()
    finally:
        ended.stdout.close()
        ended.wait()
