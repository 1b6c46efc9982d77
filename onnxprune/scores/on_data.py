"""The scores that are measured on data, by the names that users type."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnxprune.registry import Registry
from onnxprune.scores import ablation, activation, gradient, refit
from onnxprune.scores.subject import Subject
from onnxprune.types import FloatArray, Scores

#: subject -> float64 [channel] by group name, higher = keep; or why a group has no figures. A group is absent
#: where nothing can be measured in its consumers.
DataScorer = Callable[[Subject], Mapping[str, FloatArray | str]]

DATA_SCORERS: Registry[DataScorer] = Registry("score")
DATA_SCORERS.register("activation")(activation.energy)
DATA_SCORERS.register("wanda")(activation.weighted_energy)
DATA_SCORERS.register("obs")(refit.loss_after_refit)
DATA_SCORERS.register("ablation")(ablation.change_of_outputs)
DATA_SCORERS.register("taylor")(gradient.taylor)
DATA_SCORERS.register("taylor_activation")(gradient.activation_change)
DATA_SCORERS.register("fisher")(gradient.fisher)
DATA_SCORERS.register("obd")(gradient.optimal_brain_damage)
DATA_SCORERS.register("snip")(gradient.connection_sensitivity)

#: The scores that are losses, which compare between groups and add up.
_LOSSES = frozenset({"obs", "taylor", "fisher", "obd"})


def score_on_data(subject: Subject, scorer: str = "activation") -> Scores:
    """Return the importance of every channel of every group in which something can be measured.

    Args:
        subject: model, groups and data.
        scorer: a name in `DATA_SCORERS`.

    Raises:
        UsageError: the scorer is not known, or does not suit so many channels.
        DataError: the data does not fit the model, or makes it compute what is not finite.
        RuntimeFailure: ONNX Runtime can't run the model.
        MissingExtra: the score takes gradients, and torch is not installed.
        ModelError: it takes gradients, and an operator has no meaning in torch.
    """
    return Scores.of(scorer, DATA_SCORERS.get(scorer)(subject), subject.data.digest, losses=scorer in _LOSSES)
