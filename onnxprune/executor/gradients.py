"""Gradients of a loss over data: of stored weights, or of masks that stand as inputs in the graph.

The gradient of a weight is handed over as soon as it is complete, and let go of at once, so one of them is
held at a time, beside the weights and what the step keeps for its way back.

What is squared later needs the gradient of every single sample: the square of a mean says nothing of the mean
of squares. Where the batch is symbolic, samples run one at a time; where it is fixed, a batch runs once, and
each sample's loss goes its own way back. `torch.func.vmap` was tried in place of the loop: on three small
networks it took 0.3 to 1.1 of its time, and as many times the memory of all gradients as samples run at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.calibration.activations import USUAL, Running, feeds_by_batch
from onnxprune.data import Dataset
from onnxprune.errors import DataError
from onnxprune.executor.losses import LabelLoss, OwnLoss, check_classes, choose_label_loss
from onnxprune.executor.module import OnnxModule, only_tensors
from onnxprune.messages import quoted
from onnxprune.model.float32 import in_float32

Array = npt.NDArray[Any]

#: What a model is judged by: labels, or what it predicts itself where there are none; labels, or draws from
#: its own distribution where there are none; draws from its own distribution in any case.
Targets = Literal["labels or predicted", "labels or drawn", "drawn"]

#: (name of a weight, its values, its gradient), both float32 in the stored shape; the gradient is not kept
Visit = Callable[[str, Array, Array], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """What is differentiated.

    Attributes:
        targets: what the model is judged by.
        by_sample: the loss of every sample has a gradient of its own; else the sum of those of a batch.
        batches: how many batches at most; None for all.
        seed: of targets that are drawn.
    """

    targets: Targets = "labels or predicted"
    by_sample: bool = False
    batches: int | None = None
    seed: int = 0


class Differentiable:
    """A model over data, whose loss can be differentiated.

    Args:
        model: complete; runs in float32.
        data: samples that fit it, with labels or without.
        running: samples of a batch where that is symbolic, and threads.
        weights: names of the stored weights to differentiate by; those that don't train are passed over.
        masks: inputs of ``model`` that are no inputs of ``fed``: their shapes by name.
        fed: the model that the data fits, where there are masks.

    Raises:
        ModelError: an operator has no meaning in torch.
        DataError: the data does not fit.
    """

    def __init__(
        self,
        model: ir.Model,
        data: Dataset,
        running: Running = USUAL,
        *,
        weights: Collection[str] = (),
        masks: Mapping[str, tuple[int, ...]] | None = None,
        fed: ir.Model | None = None,
    ) -> None:
        self._fed = model if fed is None else fed
        self._data = data
        self._running = running
        self._masks = dict(masks or {})
        self._module = OnnxModule(in_float32(model), trains=frozenset(weights).__contains__)
        self._module.eval()

    @property
    def weights(self) -> Collection[str]:
        """Names of the weights that have gradients."""
        return self._module.trained.keys()

    @property
    def without_gradient(self) -> Mapping[str, str]:
        """Why other tensors of floats have none, by stored name."""
        return self._module.frozen

    def weight_gradients(
        self, visit: Visit, wish: Wish, progress: Callable[[float], None] | None = None
    ) -> Iterator[int]:
        """Differentiate by the weights: yield the number of samples after each step and its visits.

        Args:
            visit: called in every step for each weight that a gradient reaches.
            wish: what is differentiated.
            progress: called with the share that is done, in (0, 1].

        Raises:
            DataError: the labels fit no output, or a loss or a gradient is not finite.
            ModelError: a node can't run on this data.
        """
        hooks = [
            weight.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                partial(_hand_over, name, visit, self._data.source)
            )
            for name, weight in self._module.trained.items()
        ]
        try:
            size = 1 if wish.by_sample else self._running.batch
            for losses in self._losses(wish, size, {}, progress) if hooks else ():
                for count, loss, last in _single(losses) if wish.by_sample else _together(losses):
                    loss.backward(retain_graph=not last)  # type: ignore[no-untyped-call]
                    yield count
        finally:
            for hook in hooks:
                hook.remove()

    def mask_gradients(
        self, by_sample: Collection[str], wish: Wish, progress: Callable[[float], None] | None = None
    ) -> Iterator[dict[str, Array]]:
        """Differentiate by the masks at ones, sample by sample: yield float64 [samples, dim] by name.

        Args:
            by_sample: names of masks whose operand has the samples as its first axis. If all do, whole
                batches run at once, with ones for each sample; otherwise samples run one at a time.
            wish: what is differentiated.
            progress: called with the share that is done, in (0, 1].

        Raises:
            DataError, ModelError: as for `weight_gradients`.
        """
        at_once = len(by_sample) == len(self._masks)
        ones: dict[str, Tensor] = {}
        for losses in self._losses(wish, self._running.batch if at_once else 1, ones, progress):
            masks = list(ones.values())
            for count, loss, last in _together(losses) if at_once else _single(losses):
                found = torch.autograd.grad(loss, masks, retain_graph=not last, materialize_grads=True)
                arrays = {
                    name: gradient.reshape(count, -1).double().numpy()
                    for name, gradient in zip(ones, found, strict=True)
                }
                for name, array in arrays.items():
                    _check_finite(array, name, self._data.source)
                yield arrays

    def _losses(
        self,
        wish: Wish,
        size: int,
        ones: dict[str, Tensor],
        progress: Callable[[float], None] | None,
    ) -> Iterator[Tensor]:
        """Yield the losses [samples] of each step, with a graph behind them; renew the masks in ``ones``."""
        with _threads(self._running.threads):
            judge = self._judge(wish)
            batches = feeds_by_batch(self._fed, self._data, batch=size)
            for where, feeds in islice(batches, wish.batches):
                for name, shape in self._masks.items():
                    leading = shape[0] if size == 1 else where.stop - where.start
                    ones[name] = torch.ones((leading, *shape[1:]), requires_grad=True)
                losses = judge.losses(self._run(feeds, ones), where)
                if not bool(torch.isfinite(losses).all()):
                    raise DataError(f"{self._data.source}: on this data the loss of the model is not finite")
                yield losses
                if progress is not None:
                    progress(where.stop / len(self._data))

    def _judge(self, wish: Wish) -> _Judge:
        """Decide on a first batch, of the usual size, what the model is judged by."""
        where, feeds = next(iter(feeds_by_batch(self._fed, self._data, batch=self._running.batch)))
        ones = {name: torch.ones(shape) for name, shape in self._masks.items()}
        with torch.no_grad():
            outputs = self._run(feeds, ones)
        return _Judge.of(outputs, where, self._data, wish)

    def _run(self, feeds: Mapping[str, Array], ones: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = only_tensors(self._module({**_tensors(feeds), **ones}))
        for name, output in outputs.items():
            if output.is_floating_point() and not bool(torch.isfinite(output).all()):
                raise DataError(f"{self._data.source}: output {quoted(name)} is not finite on this data")
        return outputs


@dataclass(slots=True)
class _Judge:
    """Loss of samples, from labels or from what the model says itself."""

    by_labels: LabelLoss | None
    labels: Tensor | None
    own: OwnLoss | None
    draws: bool
    generator: torch.Generator

    @classmethod
    def of(cls, outputs: Mapping[str, Tensor], where: slice, data: Dataset, wish: Wish) -> _Judge:
        generator = torch.Generator().manual_seed(wish.seed)
        if data.labels is None or wish.targets == "drawn":
            own = OwnLoss.of(outputs, data.source)
            return cls(None, None, own, wish.targets != "labels or predicted", generator)
        labels = label_tensor(data)
        loss = choose_label_loss(outputs, labels[where], source=data.source)
        if loss.name == "cross_entropy":
            check_classes(labels, outputs[loss.output], loss.output, data.source)
        return cls(loss, labels, None, False, generator)

    def losses(self, outputs: Mapping[str, Tensor], where: slice) -> Tensor:
        """Return the loss of each sample, [samples]."""
        if self.by_labels is not None and self.labels is not None:
            return self.by_labels.per_sample(outputs, self.labels[where])
        if self.own is None:
            raise ValueError("neither labels nor a distribution")
        aims = self.own.drawn if self.draws else self.own.predicted
        return self.own.per_sample(outputs, aims(outputs, self.generator), where.stop - where.start)


def label_tensor(data: Dataset) -> Tensor:
    """Return the labels of a data set: int64 for whole numbers, else as they are.

    Raises:
        DataError: there are none, or they are texts.
    """
    labels = data.labels
    if labels is None or labels.dtype.kind not in "biuf":
        kind = "missing" if labels is None else f"of type {labels.dtype}"
        raise DataError(f"{data.source}: the array 'label' is {kind}; a loss takes numbers")
    return torch.from_numpy(np.ascontiguousarray(labels, np.int64 if labels.dtype.kind in "iu" else None))


def _single(losses: Tensor) -> Iterator[tuple[int, Tensor, bool]]:
    """Yield each loss on its own way back: how many samples it is of, the loss, whether it is the last."""
    return ((1, loss, number == len(losses)) for number, loss in enumerate(losses, start=1))


def _together(losses: Tensor) -> Sequence[tuple[int, Tensor, bool]]:
    return [(len(losses), losses.sum(), True)]


def _hand_over(name: str, visit: Visit, source: str, weight: Tensor) -> None:
    """Give a complete gradient to whoever asked for it, and let it go."""
    gradient = weight.grad
    if gradient is None:
        return
    weight.grad = None
    array = gradient.numpy()
    _check_finite(array, name, source)
    visit(name, weight.detach().numpy(), array)


def _check_finite(gradient: Array, name: str, source: str) -> None:
    if not np.isfinite(gradient).all():
        raise DataError(f"{source}: on this data the gradient of {quoted(name)} is not finite")


def _tensors(feeds: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads inside the block, 0 for one per core."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
