"""Which samples make up which step.

All passes over the data form one endless row of samples: a new order for each pass, drawn from the seed and
its number alone. A step takes the next samples of the row, so no batch is smaller than the others, no sample
is left out, and a resumed run needs to know its step only. With several processes each takes its part of
every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnxprune.data import Dataset
from onnxprune.errors import UsageError

Indices = npt.NDArray[np.int64]


class Order:
    """An endless row of samples."""

    def __init__(self, samples: int, seed: int) -> None:
        self._samples = samples
        self._seed = seed
        self._pass = -1
        self._permutation: Indices = np.empty(0, np.int64)

    def at(self, start: int, count: int) -> Indices:
        """Return the numbers of ``count`` samples, int64 [count], from place ``start`` of the row on."""
        parts: list[Indices] = []
        while count:
            number, place = divmod(start, self._samples)
            part = self._of_pass(number)[place : place + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _of_pass(self, number: int) -> Indices:
        if number != self._pass:
            generator = np.random.default_rng([self._seed, number])
            self._pass, self._permutation = number, generator.permutation(self._samples)
        return self._permutation


@dataclass(frozen=True, slots=True)
class Batch:
    """Some samples.

    Attributes:
        inputs: by name, [samples, ...].
        labels: [samples, ...] or None.
        count: samples that count; those behind them fill up a batch of fixed size.
    """

    inputs: dict[str, torch.Tensor]
    labels: torch.Tensor | None
    count: int


@dataclass(frozen=True, slots=True)
class Batches:
    """The batches of one process.

    Attributes:
        data: all samples.
        size: samples of one batch, over all processes.
        accumulate: batches of one step.
        fixed: the model takes batches of exactly that size.
        device: where they go.
        rank: number of this process.
        processes: how many there are.
    """

    data: Dataset
    size: int
    accumulate: int
    fixed: bool
    device: torch.device
    rank: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        """Refuse what can't be divided among the processes.

        Raises:
            UsageError: naming the setting.
        """
        divided, name = (self.accumulate, "accumulate") if self.fixed else (self.size, "batch")
        if divided % self.processes:
            why = f" (the model takes batches of {self.size})" if self.fixed else ""
            raise UsageError(
                f"{name} {divided} can't be divided among {self.processes} processes{why}; use a multiple"
            )

    @property
    def per_step(self) -> int:
        """Samples of one step, over all processes."""
        return self.size * self.accumulate

    def of_step(self, order: Order, step: int) -> list[Batch]:
        """Return the batches of equal size that this process runs in one step, counted from 1."""
        share = self.per_step // self.processes
        mine = order.at((step - 1) * self.per_step + self.rank * share, share)
        piece = self.size if self.fixed else self.size // self.processes
        return [self._take(mine[start : start + piece]) for start in range(0, share, piece)]

    def once(self) -> Iterator[Batch]:
        """Yield this process's part of one pass over the data, in order; each sample counts once."""
        piece = self.size if self.fixed else max(1, self.size // self.processes)
        starts = range(0, len(self.data), piece)
        for start in starts[self.rank :: self.processes]:
            yield self._take(np.arange(start, min(start + piece, len(self.data))))

    def first(self, samples: int) -> Iterator[Batch]:
        """Yield the first samples, about so many, the same in every process."""
        count = min(samples, len(self.data))
        for start in range(0, count, self.size):
            yield self._take(np.arange(start, min(start + self.size, count)))

    def _take(self, numbers: Indices) -> Batch:
        count = len(numbers)
        if self.fixed and count < self.size:
            numbers = np.resize(numbers, self.size)  # repeats them
        inputs = {name: self._tensor(array[numbers]) for name, array in self.data.arrays.items()}
        labels = self.data.labels
        if labels is None or labels.dtype.kind not in "biuf":  # texts are for the user's own metrics
            return Batch(inputs, None, count)
        whole = labels.dtype.kind in "iu"  # torch does little with its narrower unsigned types
        chosen = labels[numbers].astype(np.int64) if whole else labels[numbers]
        return Batch(inputs, self._tensor(chosen), count)

    def counting(self, values: Mapping[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Leave out what a model gave for samples that only fill up a batch."""
        filled = self.fixed and batch.count < self.size
        return {
            name: value[: batch.count] if filled and value.dim() and len(value) == self.size else value
            for name, value in values.items()
        }

    def _tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(self.device)
        return torch.from_numpy(array).to(self.device)


def split(data: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """Divide samples at random into those to tune on and those to validate on, each in their order.

    Args:
        data: at least two samples.
        share: of the samples to validate on, in (0, 1); at least one goes to each side.
        seed: of the choice.
    """
    count = min(max(1, round(share * len(data))), len(data) - 1)
    chosen = np.random.default_rng([seed, len(data)]).permutation(len(data))
    held_out = np.zeros(len(data), np.bool_)
    held_out[chosen[:count]] = True
    return _subset(data, ~held_out), _subset(data, held_out)


def _subset(data: Dataset, chosen: npt.NDArray[np.bool_]) -> Dataset:
    arrays = {name: array[chosen] for name, array in data.arrays.items()}
    extra = {"label": data.labels, "segment": data.segments}
    arrays |= {name: array[chosen] for name, array in extra.items() if array is not None}
    return Dataset.from_arrays(arrays, data.source)
