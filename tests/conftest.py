"""What all tests share: an older runtime excuses tests of operators that it has no kernels for."""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import Any

import onnxruntime
import pytest

from onnxprune.measure import turns
from onnxprune.workers import host

# For the processes that run tests side by side: threads of BLAS and torch would wait there for each other's
# cores, which made some tests take five times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

#: The release that the tests were written with. The last one for Python 3.10 is older.
_WRITTEN_WITH = (1, 31)
_INSTALLED = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])

#: What the runtime says of a model, before any cut, that it can't open or run.
_LACKS = re.compile(
    r"(exact twin|model|original)[^:]*: (ONNX Runtime cannot open it|run failed)"
    r"|NOT_IMPLEMENTED : Could not find an implementation|is not a registered function/op"
)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, None]:
    """Turn a failure for want of a kernel into a skip, with what the runtime said, on older runtimes only."""
    outcome = yield
    report = outcome.get_result()
    if _INSTALLED >= _WRITTEN_WITH or report.when != "call" or not report.failed or call.excinfo is None:
        return
    said = str(call.excinfo.value)
    if _LACKS.search(said):
        path, line, _ = item.location
        report.outcome = "skipped"
        reason = f"ONNX Runtime {onnxruntime.__version__} can't run the model: {said.splitlines()[0][:160]}"
        report.longrepr = (path, line or 0, f"Skipped: {reason}")


@pytest.fixture(autouse=True, scope="session")
def _wait_for_nobody(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Measure beside tests of other processes: they check what is done with times, not how long it took."""
    folder = tmp_path_factory.mktemp("locks")
    files = (folder / "turn", folder / "held")
    for file in files:
        file.touch()
    host._FILES = files


@pytest.fixture(autouse=True, scope="session")
def _measure_briefly() -> None:
    """Let models take turns for as many rounds as are asked for, not for a second each time."""
    turns.LEAST_SECONDS = 0.0
