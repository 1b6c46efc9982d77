"""Movement: which weights training brought away from zero, from two files, or step by step while it runs.

::

    movement           (w_after**2 - w_before**2) / 2
    movement_distance  |w_after - w_before|
    Movement           - sum over steps of w * dL/dw

The first is the sum of w * dw along any way from one to the other. Plain gradient descent moves by
dw = -rate * dL/dw, so with small steps the first is the third times the rate. What moved towards zero scores
below what did not move; the second keeps whatever moved far, either way.

For a channel, figures of all members add up: the first is then half of what its squared l2 norm grew by.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import ModelError, PlanError
from onnxprune.messages import quoted
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.registry import Registry
from onnxprune.scores.members import Members, why_no_floats
from onnxprune.scores.weights_by_gradient import Figures
from onnxprune.types import ChannelGroup, FloatArray

if TYPE_CHECKING:
    from onnxprune.executor.module import OnnxModule

Array: TypeAlias = npt.NDArray[Any]

#: Scores from two files of the same graph: (weights after, weights before), float64 -> figures, float64.
MOVEMENT_SCORERS: Registry[Callable[[Array, Array], Array]] = Registry("score")


@MOVEMENT_SCORERS.register("movement")
def away_from_zero(after: Array, before: Array) -> Array:
    """score[i] = (w_after[i]**2 - w_before[i]**2) / 2

    What the scores of Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", section 4, come
    to with small plain steps, from the ends alone. It orders weights of one start as the "magnitude increase"
    of Zhou et al. 2019, "Deconstructing Lottery Tickets", section 3, does.
    """
    return np.asarray((np.square(after) - np.square(before)) / 2)


@MOVEMENT_SCORERS.register("movement_distance")
def distance(after: Array, before: Array) -> Array:
    """score[i] = |w_after[i] - w_before[i]|, the "movement" of Zhou et al. 2019, section 3."""
    return np.asarray(np.abs(after - before))


def weight_figures(after: ir.Model, before: ir.Model, tensors: Iterable[str], score: str) -> Figures:
    """Return how far stored weights moved, in the sense of a score.

    Args:
        after: the model that is pruned.
        before: the same graph with earlier weights.
        tensors: names of the weights.
        score: a name in `MOVEMENT_SCORERS`.

    Raises:
        PlanError: a weight is missing before, or has another shape.
        ModelError: an earlier weight is not a finite number.
    """
    measure = MOVEMENT_SCORERS.get(score)
    now, then = stored_values(after), stored_values(before)
    return Figures({name: _figures(now, then, name, measure).astype(np.float32) for name in tensors})


def channel_movement(
    after: ir.Model, before: ir.Model, groups: Iterable[ChannelGroup], score: str
) -> dict[str, FloatArray | str]:
    """Return how far the channels of groups that are not frozen moved: the sum over all their members.

    Args:
        after: the model in which the groups were found.
        before: prepared in the same way from earlier weights.
        groups: from an analysis.
        score: a name in `MOVEMENT_SCORERS`.

    Returns:
        float64 [channel] by group name, or why a group has no figures.

    Raises:
        PlanError, ModelError: as for `weight_figures`.
    """
    measure = MOVEMENT_SCORERS.get(score)
    now, then = stored_values(after), stored_values(before)
    floats = [name for name, values in now.items() if tensor_of(values[0]).dtype.is_floating_point()]
    return channel_sums(after, groups, floats, lambda name: _figures(now, then, name, measure))


def channel_sums(
    model: ir.Model,
    groups: Iterable[ChannelGroup],
    tensors: Collection[str],
    figures: Callable[[str], Array],
) -> dict[str, FloatArray | str]:
    """Add up figures of weights over all members of each channel, of groups that are not frozen.

    Args:
        model: in which the groups were found.
        groups: from an analysis.
        tensors: stored names of the weights that have figures.
        figures: returns those of a weight, in its shape.

    Returns:
        float64 [channel] by group name, or why a group has no figures.
    """
    able = [group for group in groups if group.frozen is None]
    reasons = {group.name: why for group in able if (why := why_no_floats(model, group)) is not None}
    members = Members.of((group for group in able if group.name not in reasons), tensors)
    totals = members.zeros()
    for name in members.tensors:
        members.add(totals, name, figures(name))
    return {**totals, **reasons}


def _figures(
    now: Mapping[str, list[ir.Value]],
    then: Mapping[str, list[ir.Value]],
    name: str,
    measure: Callable[[Array, Array], Array],
) -> Array:
    after = tensor_of(now[name][0]).numpy()
    if name not in then:
        raise PlanError(f"the earlier model has no weight {quoted(name)}; give earlier weights of this graph")
    before = tensor_of(then[name][0]).numpy()
    if before.shape != after.shape:
        raise PlanError(
            f"weight {quoted(name)} is {list(before.shape)} in the earlier model and {list(after.shape)} in "
            "this one; give earlier weights of this graph"
        )
    figures = measure(after.astype(np.float64), before.astype(np.float64))
    if not np.isfinite(figures).all():
        raise ModelError(f"weight {quoted(name)} is not finite, in this model or in the earlier one")
    return figures


class Movement:
    """Adds up -w * dL/dw over the steps of a tuning run.

    Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning", section 4: the score of a weight
    grows in each step that moves it away from zero. Weights that a mask holds at zero stay where they are.
    One array of the size of each trained weight is kept, where the module is, in float32 at least.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self.steps = 0

    def add(self, module: OnnxModule) -> None:
        """Take in the gradients that a backward pass left in a module.

        Args:
            module: whose parameters hold gradients; those without are passed over. A mean over accumulated
                passes, or clipped gradients, count as they stand.
        """
        for name, weight in module.trained.items():
            if weight.grad is None:
                continue
            wide = weight.detach().float() if weight.itemsize < 4 else weight.detach()
            change = wide * weight.grad.detach().to(wide.dtype)
            if name in self._sums:
                self._sums[name] -= change
            else:
                self._sums[name] = -change
        self.steps += 1

    def figures(self) -> dict[str, Array]:
        """Return the score of every weight so far, float32 or float64 in the stored shape, by stored name."""
        return {name: total.cpu().numpy().copy() for name, total in self._sums.items()}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: plain numbers and numpy arrays."""
        return {"steps": self.steps, "figures": self.figures()}

    def load(self, state: Mapping[str, Any], module: OnnxModule) -> None:
        """Go on from what `state` returned.

        Args:
            state: see there.
            module: the one that is tuned, which says where the sums go.
        """
        import torch

        trained = module.trained
        self.steps = int(state["steps"])
        self._sums = {
            name: torch.tensor(figures, device=trained[name].device)
            for name, figures in state["figures"].items()
        }
