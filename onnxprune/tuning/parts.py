"""What a run is made of: modules, batches, masks and the objective; and what identifies it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from onnxprune.calibration.activations import inputs_of
from onnxprune.data import Dataset, fixed_batch
from onnxprune.errors import ModelError, UsageError
from onnxprune.executor.module import OnnxModule, only_tensors
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.stored import put_numbers, stored_values
from onnxprune.tuning.batches import Batch, Batches
from onnxprune.tuning.control import Control
from onnxprune.tuning.distributed import Processes
from onnxprune.tuning.losses import Values
from onnxprune.tuning.masks import HeldMasks
from onnxprune.tuning.objective import Decided, First, check_validation, decide
from onnxprune.tuning.settings import Tuning
from onnxprune.types import Mask, Skipped

#: Samples that scales and kinds of outputs are taken from, at the beginning of the data.
_FIRST_SAMPLES = 64

#: Samples of a probe.
_PROBED_SAMPLES = 8

#: Settings that change nothing of what comes out.
_FREE = frozenset({"checkpoint_every"})


@dataclass(frozen=True, slots=True)
class Probe:
    """What a module computes from some samples.

    Attributes:
        inputs: by name, [samples, ...].
        outputs: those that hold floats, by name; none where two runs differ (the model draws random numbers).
    """

    inputs: Mapping[str, npt.NDArray[Any]]
    outputs: Mapping[str, npt.NDArray[np.float32]]


class Parts:
    """Modules and data of one run, in one process.

    Attributes:
        module: what is tuned.
        held: its masks.
        batches: samples to tune on.
        validation: samples to look at, or None.
    """

    def __init__(
        self,
        module: OnnxModule,
        teacher: OnnxModule | None,
        batches: Batches,
        validation: Batches | None,
        settings: Tuning,
        processes: Processes,
    ) -> None:
        self.module, self.batches, self.validation = module, batches, validation
        self.held = HeldMasks(module.trained)
        self._teacher = teacher
        self._settings = settings
        self._device = processes.device
        self._together: DistributedDataParallel | None = None
        self._synchronizes = False
        decided = self._decide()
        self.objective, self.metric = decided.objective, decided.metric
        self.told, self.notes = decided.told, (*notes_on_batches(batches), *decided.notes)
        if processes.count > 1:
            # a weight may have no part in what the loss looks at
            self._together = DistributedDataParallel(module, find_unused_parameters=True)

    def train(self) -> None:
        """Make ready for a step."""
        self._synchronizes = True
        self.module.train(self._settings.batch_norm == "train")

    def evaluate(self) -> None:
        """Make ready for a look at the validation samples."""
        self._synchronizes = False
        self.module.eval()

    def forward(self, batch: Batch) -> tuple[Values, Values | None]:
        """Return what the objective compares: values of the model, and of the original or None."""
        inner = self.objective.inner
        run = self._together if self._together is not None and self._synchronizes else self.module
        with self._autocast():
            values: Values = only_tensors(run(batch.inputs, also=inner))
        return values, self._of_original(batch, inner) if self.objective.needs_teacher else None

    def unsynchronized(self) -> AbstractContextManager[None]:
        """Return a block in which gradients of this process alone are added up."""
        return nullcontext() if self._together is None else self._together.no_sync()

    def probe(self) -> Probe:
        """Return what the module computes from the first few samples."""
        batch = next(self.batches.first(_PROBED_SAMPLES))
        data, count = self.batches.data, len(next(iter(batch.inputs.values())))
        self.evaluate()
        with torch.no_grad():
            once, again = (only_tensors(self.module(batch.inputs)) for _ in range(2))
        same = all(torch.equal(value, again[name]) for name, value in once.items())
        outputs = {
            name: value.detach().float().cpu().numpy()  # an output that is a weight asks for its gradient
            for name, value in once.items()
            if same and value.is_floating_point()
        }
        places = np.resize(np.arange(min(count, len(data))), count)
        return Probe({name: array[places] for name, array in data.arrays.items()}, outputs)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Return copies, in main memory, of all that tuning changes in the module."""
        moving = self.module.named_buffers() if self._settings.batch_norm == "train" else ()
        return {
            "trained": {name: _copy(weight) for name, weight in self.module.trained.items()},
            "buffers": {name: _copy(buffer) for name, buffer in moving},
        }

    def load_weights(self, weights: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Put back what `weights` gave."""
        buffers = dict(self.module.named_buffers())
        with torch.no_grad():
            for name, weight in weights["trained"].items():
                self.module.trained[name].copy_(weight)
            for name, buffer in weights["buffers"].items():
                buffers[name].copy_(buffer)

    def _of_original(self, batch: Batch, inner: Sequence[str]) -> Values | None:
        if self._teacher is None:
            return None
        with torch.no_grad(), self._autocast():
            return only_tensors(self._teacher(batch.inputs, also=inner))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=getattr(torch, self._settings.precision))

    def _decide(self) -> Decided:
        """Run the first samples, to see what the outputs are like."""
        with torch.no_grad():  # all of it: an output that is a weight would bring its gradient along
            return self._decided()

    def _decided(self) -> Decided:
        values, originals, labels = [], [], []
        wanted, teacher = self._settings.match, self._teacher
        self.module.eval()
        for batch in self.batches.first(_FIRST_SAMPLES):
            with self._autocast():
                found = self.module(batch.inputs, also=[n for n in wanted if self.module.has(n)])
            values.append(self.batches.counting(only_tensors(found), batch))
            if teacher is not None:
                given = self._of_original(batch, [n for n in wanted if teacher.has(n)])
                originals.append(self.batches.counting(given or {}, batch))
            if batch.labels is not None:
                labels.append(batch.labels[: batch.count])
        first = First(
            _joined(values),
            torch.cat(labels) if labels else None,
            _joined(originals) if originals else None,
            self.module.outputs,
        )
        decided = decide(self._settings, self.batches.data, first)
        if self.validation is not None:
            check_validation(self.validation.data, self.batches.data, decided.metric)
        return decided


def assemble(
    model: ir.Model,
    data: Dataset,
    settings: Tuning,
    teacher: ir.Model | None,
    validation: Dataset | None,
    processes: Processes,
) -> Parts:
    """Build the modules and divide the data.

    Raises:
        ModelError: an operator has no torch meaning, or nothing can be trained.
        DataError, UsageError: data or settings don't fit the model.
    """
    size, fixed = _batch_size(model, data, settings)
    if teacher is not None:
        teachers, its_own = _batch_size(teacher, data, settings)
        if its_own and (teachers, its_own) != (size, fixed):
            raise UsageError(
                f"the original takes batches of {teachers} alone, this model does not: export both alike"
            )
    # weights and sums in float32 where the file stores less
    module = OnnxModule(model, device=processes.device, precision="float32")
    if not module.trained:
        why = next(iter(module.frozen.values()), "it holds no floats")
        raise ModelError(f"nothing in this model can be trained ({why})")
    frozen = None
    if teacher is not None:
        frozen = OnnxModule(teacher, device=processes.device, precision="float32", trains=lambda _: False)
        frozen.eval()

    def batches(samples: Dataset) -> Batches:
        samples.check_against(inputs_of(model, samples))
        where = (processes.device, processes.rank, processes.count)
        runs = max(1, settings.batch * settings.accumulate // size) if fixed else settings.accumulate
        return Batches(samples, size, runs, fixed, *where)

    return Parts(
        module,
        frozen,
        batches(data),
        None if validation is None else batches(validation),
        settings,
        processes,
    )


def _batch_size(model: ir.Model, data: Dataset, settings: Tuning) -> tuple[int, bool]:
    """Return the samples of one batch, and whether the model takes no other number."""
    fixed = fixed_batch(inputs_of(model, data))
    return (settings.batch, False) if fixed is None else (fixed, True)


def identity(
    model: ir.Model,
    data: Dataset,
    settings: Tuning,
    teacher: ir.Model | None,
    validation: Dataset | None,
    masks: Mapping[str, Mask] | None,
    control: Control | None,
) -> dict[str, Any]:
    """Return what decides the course of a run, as plain values: a checkpoint of another is refused."""
    chosen = {name: value for name, value in settings.as_dict().items() if name not in _FREE}
    return {
        **chosen,  # first: a seed, say, that changes the samples too is what is to be named
        "model": _digest(model),
        "original": None if teacher is None else _digest(teacher),
        "data": data.digest,
        "validation samples": None if validation is None else validation.digest,
        "masks": _digest_of_masks(masks or {}),
        **({} if control is None else {"schedule": dict(control.settings())}),
    }


def _digest(model: ir.Model) -> str:
    text = structure_digest(model) + weights_digest(model)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest_of_masks(masks: Mapping[str, Mask]) -> str:
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(repr((name, masks[name].shape)).encode())
        digest.update(masks[name].bits.tobytes())
    return digest.hexdigest()


def seed_for(seed: int, step: int, rank: int) -> int:
    """Return the seed of one step in one process."""
    (drawn,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    return int(drawn >> np.uint64(1))


def write_values(model: ir.Model, values: Mapping[str, npt.NDArray[Any]]) -> ir.Model:
    """Return a copy of a model with other contents of some stored tensors, of the same shapes and types."""
    copy = model.clone()
    stored = stored_values(copy)
    for name, array in values.items():
        (value,) = stored[name]
        put_numbers(value, array)
    return copy


def notes_on_batches(batches: Batches) -> list[Skipped]:
    """Say what becomes of the batch size where the model has its own."""
    if not batches.fixed:
        return []
    runs = f"{batches.accumulate} runs make up a step" if batches.accumulate > 1 else "one is a step"
    return [Skipped("batch", f"the model takes batches of {batches.size} and no others: {runs}")]


def _joined(parts: Sequence[Values]) -> Values:
    """Put values of several batches together; leave out those whose shape depends on the samples."""
    joined = {}
    for name, value in parts[0].items():
        pieces = [part[name] for part in parts if name in part]
        if not value.dim():
            joined[name] = value
        elif {piece.shape[1:] for piece in pieces} == {value.shape[1:]}:
            joined[name] = torch.cat(pieces)
    return joined


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
