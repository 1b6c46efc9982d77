"""What of a machine decides how long a computation takes, as far as the system tells it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from pathlib import Path

_CPU = Path("/proc/cpuinfo")
_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
_NVIDIA = Path("/proc/driver/nvidia/gpus")

#: Lines of /proc/cpuinfo that tell processors apart, on x86 and on ARM.
_TELLING = ("model name", "cpu family", "model", "stepping", "flags", "Features", "CPU implementer",
            "CPU architecture", "CPU variant", "CPU part")  # fmt: skip


@functools.cache
def memory_bytes() -> int | None:
    """Return the memory of the machine, or what our control group may use of it; None if nobody tells."""
    found = []
    if hasattr(os, "sysconf"):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in _GROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such group, or "max"
            found.append(int(file.read_text(encoding="ascii")))
    return min(found, default=None)


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
