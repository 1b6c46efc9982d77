"""Memory that a model file takes: to load, to keep, and to run, each in a process of its own.

The parent starts this module with its own interpreter, hands it the inputs and reads one JSON line back.
Figures are growth of the resident set over what the interpreter, ONNX Runtime and the inputs take; they
repeat within about `REPEATS_WITHIN_MIB`. The kernel's record of the peak is reset between the phases, so that
loading (with its temporary copies) and running are told apart.
"""

from __future__ import annotations

import base64
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from onnxprune.containment import describe_crash, die_with_parent, leave_no_core
from onnxprune.errors import ModelError, RuntimeFailure
from onnxprune.messages import one_line

if TYPE_CHECKING:
    import onnx_ir as ir

    from onnxprune.runtime import Execution

TIMEOUT_SECONDS = 600.0
RUNS = 3

#: How far figures of two measurements of one model lie apart.
REPEATS_WITHIN_MIB = 3.0

_MIB = 1 << 20
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets VmHWM to the current resident set
_EXIT_FAILURE = 3  # the child says why on stdout


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """Memory of one model file, in MiB; None where it could not be measured.

    Attributes:
        load_peak_mib: most memory while the session is made.
        steady_mib: what stays once it is made.
        run_peak_mib: most memory while it runs, with what stays.
        reason: why figures are missing, or None.
    """

    load_peak_mib: float | None
    steady_mib: float | None
    run_peak_mib: float | None
    reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def measure_memory(
    path: str | Path,
    *,
    execution: Execution | None = None,
    batch: int | None = None,
    seed: int = 0,
    feeds: Mapping[str, npt.NDArray[Any]] | None = None,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> MemoryResult:
    """Load and run a model file in a fresh process, and return how much memory that takes.

    Memory of a device is not counted, only the process's own.

    Args:
        path: the model file.
        execution: where and how it runs; one thread on the CPU if None.
        batch: size of the first axis where that is symbolic; 1 by default.
        seed: of the random inputs.
        feeds: inputs to run on, instead of random ones.
        input_shapes: shapes of random inputs by name, where the guess does not do.
        timeout_seconds: after which the process is ended.

    Raises:
        ModelError: the file is missing.
        RuntimeFailure: the model can't be opened or run, crashed ONNX Runtime, or took too long.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"{one_line(path)}: no such model file")
    if not _STATUS.exists():
        return MemoryResult(None, None, None, f"memory is measured on Linux only, not on {sys.platform}")
    if feeds is None:
        from onnxprune.measure.inputs import random_inputs  # not needed by the child, whose memory counts

        feeds = random_inputs(path, batch=batch, input_shapes=input_shapes, seed=seed)
    from onnxprune.model.io import pass_on

    task = {
        "path": str(path.absolute()),
        "checked": pass_on(path),  # reading it again would count as memory of the model
        "execution": {} if execution is None else asdict(execution),
        "feeds": {name: _pack(array) for name, array in feeds.items()},
    }
    return MemoryResult(**_ask_child(task, timeout_seconds, one_line(path)))


def _ask_child(task: dict[str, Any], timeout_seconds: float, label: str) -> dict[str, Any]:
    # from the folder that holds the package: with -m, Python looks for modules in the current folder first
    package_folder = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "onnxprune.measure.memory"],
            input=json.dumps(task),
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            cwd=package_folder,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeFailure(f"{label}: took more than {timeout_seconds:g} s to load and run") from None
    if done.returncode < 0:
        why = describe_crash(-done.returncode, done.stderr)
        raise RuntimeFailure(f"{label}: while memory was measured, {why}")
    try:
        answer: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except json.JSONDecodeError:
        last = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeFailure(f"{label}: the measuring process failed: {one_line(last)}") from None
    if done.returncode == _EXIT_FAILURE:
        raise RuntimeFailure(one_line(answer["error"], limit=400))
    return answer


def _pack(array: npt.NDArray[Any]) -> dict[str, Any]:
    raw = np.asarray(array, order="C").tobytes()
    return {"shape": list(array.shape), "bytes": base64.b64encode(raw).decode("ascii")}


def main() -> int:
    """Measure in this process: the task comes as JSON on stdin, the answer leaves as JSON on stdout."""
    leave_no_core()
    die_with_parent()
    task = json.load(sys.stdin)
    raw = {name: base64.b64decode(feed["bytes"]) for name, feed in task["feeds"].items()}
    shapes = {name: feed["shape"] for name, feed in task["feeds"].items()}

    from onnxprune.errors import OnnxPruneError
    from onnxprune.model.io import take_over
    from onnxprune.runtime import Execution, open_session, pinned

    setting = task["execution"]
    setting["options"] = tuple((key, value) for key, value in setting.get("options", ()))
    execution = Execution(**setting)
    open_session(_tiny_model())  # so that ONNX Runtime's own first steps are not counted
    baseline_bytes = _settle()
    peaks = _reset_peak()
    try:
        take_over(task["path"], task.get("checked", ()))
        session = open_session(task["path"], execution=execution)
        load_peak_bytes, steady_bytes = _resident("VmHWM"), _resident("VmRSS")
        _reset_peak()
        feeds = {
            name: np.frombuffer(content, session.inputs[name].dtype).reshape(shapes[name])
            for name, content in raw.items()
        }
        with pinned(execution):
            for _ in range(RUNS):
                session.run(feeds)
        run_peak_bytes = _resident("VmHWM")
    except OnnxPruneError as error:
        print(json.dumps({"error": str(error)}))
        return _EXIT_FAILURE

    def growth_mib(size_bytes: int) -> float:
        return round((size_bytes - baseline_bytes) / _MIB, 1)

    figures = MemoryResult(
        load_peak_mib=growth_mib(load_peak_bytes) if peaks else None,
        steady_mib=growth_mib(steady_bytes),
        run_peak_mib=growth_mib(run_peak_bytes) if peaks else None,
        reason=None if peaks else "this system does not reset the record of a process's peak memory",
    )
    print(json.dumps(figures.as_dict()))
    return 0


def _settle() -> int:
    """Give free memory back to the system, so that loading cannot hide in it; return the resident bytes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
    return _resident("VmRSS")


def _reset_peak() -> bool:
    """Set the record of the peak to the current resident set; tell whether the system let us."""
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def _resident(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeFailure(f"{_STATUS} has no {field}")


def _tiny_model() -> ir.Model:
    import onnx_ir as ir

    x = ir.val("x", ir.DataType.FLOAT, [1])
    node = ir.node("Relu", [x])
    return ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}), ir_version=8)


if __name__ == "__main__":
    sys.exit(main())
