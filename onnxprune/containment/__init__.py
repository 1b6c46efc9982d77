"""A command in a process of its own, so that nothing that goes wrong there can go wrong here.

Models come from strangers, and native libraries crash, hang and swell on some of them in ways that no
exception handler sees. The process that a user starts therefore stays small and works through a second one:
it waits, passes signals on, says in one line what became of the other, and clears away what that could not.
"""

from onnxprune.containment.crashes import describe_crash
from onnxprune.containment.supervisor import Ended, supervise
from onnxprune.containment.worker import (
    confine,
    die_with_parent,
    keep_limits,
    leave_no_core,
    limit_memory,
    take_signals,
)

__all__ = [
    "Ended",
    "confine",
    "describe_crash",
    "die_with_parent",
    "keep_limits",
    "leave_no_core",
    "limit_memory",
    "supervise",
    "take_signals",
]
