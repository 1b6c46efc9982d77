"""Which pruner a pattern has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.planning.recipes import STRUCTURED
from onnxprune.planning.watch import Watch
from onnxprune.pruning import Pruner, Task
from onnxprune.pruning_channels import ChannelPruner
from onnxprune.pruning_layers import LayerPruner
from onnxprune.pruning_weights import WeightPruner


def pruner_for(task: Task, recipe: Mapping[str, Any], watch: Watch) -> Pruner:
    """Gather what decisions about a model are made from, and return what makes and carries them out.

    Args:
        task: the model, and how it is pruned.
        recipe: the options of `onnxprune.prune` that were given, with pattern, score and scope; amount and
            targets may be others in every recipe that is pruned by.
        watch: gets the seconds of what is gathered.

    Raises:
        UsageError, DataError, NothingToPrune: as `onnxprune.prune`.
    """
    if recipe["pattern"] == "layers":
        return LayerPruner(task, recipe, watch)
    if recipe["pattern"] in STRUCTURED:
        return ChannelPruner(task, recipe, watch)
    return WeightPruner(task, recipe, watch)
