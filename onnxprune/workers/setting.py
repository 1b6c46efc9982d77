"""Who works: how many processes of this machine, or which cluster."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxprune.errors import UsageError

_ADDRESS = re.compile(r"(tcp|tls)://(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Workers:
    """Who works.

    Attributes:
        jobs: processes on this machine; 0 for one per core. 1 is this process itself.
        scheduler: address of a Dask scheduler, whose workers do it instead; None for this machine.

    Raises:
        UsageError: a negative number of jobs, an address of another form, or both asked for.
    """

    jobs: int = 1
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if self.jobs < 0:
            raise UsageError(f"jobs is a number of processes, or 0 for one per core, not {self.jobs}")
        if self.scheduler is None:
            return
        found = _ADDRESS.fullmatch(self.scheduler)
        if found is None or not 0 < int(found[3]) < 1 << 16:
            raise UsageError(
                f"scheduler is an address such as tcp://10.0.0.5:8786 or tls://..., not {self.scheduler!r}"
            )
        if self.jobs != 1:
            raise UsageError("jobs are processes of this machine, scheduler is a cluster: give one of them")

    def count(self, tasks: int) -> int:
        """Return how many processes of this machine work on some tasks."""
        if self.jobs:
            return min(self.jobs, tasks)
        from loky import cpu_count  # knows affinity and control groups

        return min(int(cpu_count()), tasks)


#: This process does it all.
ALONE = Workers()
