import os
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import UsageError
from onnxprune.runtime import Execution, open_session, pinned

linux_only = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system does not pin threads"
)
PRODUCT = """<ir_version: 8, opset_import: ["" : 17]> g (float[256, 256] x) => (float[256, 256] y) {
    y = MatMul(x, x) }"""


def product():
    return ir.from_proto(onnx.parser.parse_model(PRODUCT))


def test_the_key_tells_every_setting_and_no_order():
    settings = [
        Execution(),
        Execution("cuda"),
        Execution(threads=2),
        Execution(options=(("a", "1"),)),
        Execution(options=(("a", "1"), ("b", "2"))),
        Execution(spinning=True),
        Execution(arena=False),
        Execution(pin="0"),
        Execution(pin="1"),
    ]
    assert len({setting.key for setting in settings}) == len(settings)
    forth, back = (("a", "1"), ("b", "2")), (("b", "2"), ("a", "1"))
    assert Execution(options=forth).key == Execution(options=back).key
    assert "\n" not in Execution(pin="\n").key


@pytest.mark.parametrize(
    ("pin", "threads", "match"),
    [
        ("a", 1, "no list of cores"),
        ("", 1, "no list of cores"),
        ("0-", 1, "no list of cores"),
        ("0-1-2", 3, "no list of cores"),
        ("-1", 1, "no list of cores"),
        ("0,0", 2, "twice"),
        ("0", 2, "1 cores for 2 threads"),
        ("0", 0, "1 cores for any number of threads"),
        ("0-99999999", 1, "no list of cores"),
        ("9999", 1, "may not use core 9999"),
        ("\x1b[2J", 1, "no list of cores"),
    ],
)
@linux_only
def test_cores_that_cannot_be_had(pin, threads, match):
    before = os.sched_getaffinity(0)
    with pytest.raises(UsageError, match=match) as caught:
        open_session(product(), execution=Execution(threads=threads, pin=pin))
    assert "\x1b" not in str(caught.value)
    assert os.sched_getaffinity(0) == before


def test_a_system_without_pinning_says_so(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    with pytest.raises(UsageError, match="this system"):
        Execution(pin="0").cores()


@linux_only
def test_the_calling_thread_is_pinned_meanwhile():
    before = os.sched_getaffinity(0)
    core = max(before)
    with pinned(Execution(pin=str(core))):
        assert os.sched_getaffinity(0) == {core}
        assert Execution(pin=str(min(before))).cores() == (min(before),)  # it may leave again
        assert os.sched_getaffinity(0) == {core}
    assert os.sched_getaffinity(0) == before
    with pytest.raises(ZeroDivisionError), pinned(Execution(pin=str(core))):
        raise ZeroDivisionError
    assert os.sched_getaffinity(0) == before
    with pinned(Execution()):
        assert os.sched_getaffinity(0) == before


@linux_only
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_threads_of_onnx_runtime_are_pinned():
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("one core only")
    tasks = Path("/proc/self/task")
    before = {task.name for task in tasks.iterdir()}
    first, second = cores
    session = open_session(product(), execution=Execution(threads=2, pin=f"{first},{second}"))
    new = [task for task in tasks.iterdir() if task.name not in before]
    assert session.run({"x": np.ones((256, 256), np.float32)})["y"][0, 0] == 256
    wanted = f"Cpus_allowed_list:\t{second}\n"
    for _ in range(200):  # a new thread pins itself once it runs
        if any(wanted in (task / "status").read_text() for task in new):
            return
        time.sleep(0.01)
    pytest.fail("no thread runs on the second core alone")


def test_an_execution_stands_for_the_single_settings(monkeypatch):
    from onnxprune.runtime import opening

    seen = []
    original = opening.session_options
    monkeypatch.setattr(opening, "session_options", lambda e, *more: seen.append(e) or original(e, *more))
    wanted = Execution(threads=2, spinning=False, arena=False)
    open_session(product(), execution=wanted)
    open_session(product(), threads=2, spinning=False, arena=False)
    assert seen == [wanted, wanted]
    options = original(wanted, "all", True)
    assert options.intra_op_num_threads == 2
    assert not options.enable_cpu_mem_arena
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert (
        original(Execution(spinning=True), "all", True).get_session_config_entry(
            "session.intra_op.allow_spinning"
        )
        == "1"
    )
