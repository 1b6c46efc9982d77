"""What a worker gives up, the kernel really takes away."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from onnxprune.containment.landlock import restrict

_PROBE = """
import json, os, socket, sys
from pathlib import Path
from onnxprune.containment.landlock import restrict
writable, other, port, network = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "yes"
held = restrict([writable, writable / "missing"], network=network)
def tried(work):
    try:
        work()
    except OSError as error:
        return type(error).__name__
    return "done"
print(json.dumps({
    "held": held,
    "write inside": tried(lambda: (writable / "a").write_text("a")),
    "rename inside": tried(lambda: (writable / "a").rename(writable / "b")),
    "write outside": tried(lambda: (other / "a").write_text("a")),
    "truncate outside": tried(lambda: os.truncate(other / "old", 0)),
    "remove outside": tried(lambda: (other / "old").unlink()),
    "folder outside": tried(lambda: (other / "new").mkdir()),
    "read outside": tried(lambda: (other / "old").read_text()),
    "null": tried(lambda: Path(os.devnull).write_text("x")),
    "call": tried(lambda: socket.create_connection(("127.0.0.1", port)).close()),
    "child writes outside": os.system(f"touch {other}/child 2>/dev/null") and "failed",
}))
"""


def probe(tmp_path, *, network):
    writable, other = tmp_path / "writable", tmp_path / "other"
    writable.mkdir()
    other.mkdir()
    (other / "old").write_text("old")
    with socket.create_server(("127.0.0.1", 0)) as server:
        arguments = [str(writable), str(other), str(server.getsockname()[1]), "yes" if network else "no"]
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, *arguments], capture_output=True, text=True, check=True
        )
    found = json.loads(done.stdout)
    if not found.pop("held"):
        pytest.skip("this kernel has no Landlock that is new enough")
    return found


def test_only_the_named_folders_can_be_written_and_nobody_called(tmp_path):
    denied = "PermissionError"
    assert probe(tmp_path, network=False) == {
        "write inside": "done", "rename inside": "done", "read outside": "done", "null": "done",
        "write outside": denied, "truncate outside": denied, "remove outside": denied,
        "folder outside": denied, "call": denied, "child writes outside": "failed",
    }  # fmt: skip


def test_tcp_can_be_kept(tmp_path):
    assert probe(tmp_path, network=True)["call"] == "done"


def test_where_the_system_has_none_nothing_happens(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not restrict([], network=False)
    (tmp_path / "still writable").touch()


def test_a_command_is_confined(tmp_path):
    """The path of the model is all that ``inspect`` may write beside, and it calls nobody."""
    code = f"""
import os, sys
from pathlib import Path
import onnxprune.inspection
from onnxprune_cli.main import run
def escape(*_args, **_options):
    Path({str(tmp_path / "stray")!r}).write_text("x")
onnxprune.inspection.inspect_model = escape
sys.argv = ["onnxprune", "inspect", {str(tmp_path / "models" / "m.onnx")!r}]
run()
"""
    probe(tmp_path, network=False)  # skips where there is no Landlock
    (tmp_path / "models").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert not (tmp_path / "stray").exists()
