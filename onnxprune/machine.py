"""What of a machine decides how long a computation takes, as far as the system tells it."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

_CPU = Path("/proc/cpuinfo")
_NVIDIA = Path("/proc/driver/nvidia/gpus")

#: Lines of /proc/cpuinfo that tell processors apart, on x86 and on ARM.
_TELLING = ("model name", "cpu family", "model", "stepping", "flags", "Features", "CPU implementer",
            "CPU architecture", "CPU variant", "CPU part")  # fmt: skip


@functools.cache
def processor() -> str:
    """Return one line of text: model and instruction sets of the processor, and the number of its cores.

    Where there is no ``/proc/cpuinfo``, it is what the ``platform`` module knows.
    """
    try:
        text = _CPU.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    told = _telling(text) or [platform.machine(), platform.processor(), platform.platform()]
    return "; ".join([*told, f"{os.cpu_count()} cores"])


def _telling(text: str) -> list[str]:
    """Return the telling lines of the first processor in the text of /proc/cpuinfo."""
    first: dict[str, str] = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        if colon and name.strip() in _TELLING:
            first.setdefault(name.strip(), " ".join(rest.split()))
    return [f"{name}: {rest}" for name, rest in first.items()]


@functools.cache
def graphics() -> str:
    """Return the names of NVIDIA's devices, empty where the system lists none."""
    try:
        files = sorted(_NVIDIA.glob("*/information"))
        lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    return "; ".join(line.partition(":")[2].strip() for line in lines if line.startswith("Model"))
