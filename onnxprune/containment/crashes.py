"""What it means that a process was ended by a signal."""

from __future__ import annotations

import signal

#: What C++ and C libraries print when memory runs out, before they end the process.
_OUT_OF_MEMORY = ("bad_alloc", "MemoryError", "Cannot allocate memory", "Failed to allocate memory")

_MEANINGS = {
    "SIGKILL": "it was killed, most likely because the system ran out of memory",
    "SIGXCPU": "it used up its CPU time",
    "SIGXFSZ": "it wrote a file beyond the size limit",
    "SIGTERM": "somebody terminated it",
}


def describe_crash(number: int, printed: str = "") -> str:
    """Return half a sentence on a process that a signal ended.

    Args:
        number: of the signal.
        printed: what native libraries printed before, if that is known.
    """
    if any(text in printed for text in _OUT_OF_MEMORY):
        return "it ran out of memory"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return _MEANINGS.get(name, f"a native library crashed ({name}); the model may be damaged or hostile")
