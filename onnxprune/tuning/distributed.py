"""Several processes, as ``torchrun`` starts them: each has its part of every batch, all have one gradient."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from onnxprune.errors import UsageError
from onnxprune.messages import one_line


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among all.

    Attributes:
        rank: its number; the first writes and prints.
        count: how many there are.
        device: that it computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of some numbers over all processes, the same in each of them."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total.tolist()]

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.count > 1:
            self.sums([0.0])


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes of ``torchrun``, if it started this one; a group that exists already is used.

    Raises:
        UsageError: there is no such device.
    """
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ and not dist.is_initialized()
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device!r}: torch finds no CUDA GPU here; leave it out to tune on the CPU")
    try:
        where = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r}: {one_line(error)}") from error
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if started and int(os.environ["WORLD_SIZE"]) > 1:
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        if dist.is_initialized():
            yield Processes(dist.get_rank(), dist.get_world_size(), where)
        else:
            yield Processes(0, 1, where)
    finally:
        if started and dist.is_initialized():
            dist.destroy_process_group()
