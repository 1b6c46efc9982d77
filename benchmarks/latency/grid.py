"""What is run: which question, of which model, with which settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from accuracy.grid import SEEDS

#: The target and threads of the first question.
TARGET, THREADS = 0.5, 2

#: Models with random weights that a target is delivered on.
DELIVERED = ("resnet50", "mobilenet_v2", "efficientnet_b0", "vit_b_16")

#: Models with random weights whose time is predicted.
PREDICTED = (
    "resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "densenet121",
    "regnet_y_400mf", "convnext_tiny", "vit_b_16", "llama",
)  # fmt: skip

#: Models with trained weights, and the batch with which a run of them takes over a millisecond.
TRAINED = {"digits_residual": 16, "digits_vit": 16, "fashion_resnet": 8, "fashion_vit": 8}

#: Shares of the time at which their accuracy is compared.
TARGETS = (0.6, 0.4)

#: Less than any of these can be brought to.
UNREACHABLE = (("resnet50", 0.02, ()), ("mobilenet_v2", 0.3, ("--floor", "0.8")), ("fashion_vit", 0.05, ()))

#: Inputs whose sizes a model leaves open, beside the batch.
INPUT_SHAPES: Mapping[str, Mapping[str, tuple[int, ...]]] = {"llama": {"x": (8, 24)}}

#: Seconds that a search may spend on timing parts: the default of `onnxprune.prune`.
TIME_LIMIT = 120

QUESTIONS = ("delivered", "accuracy", "torch_pruning", "prediction", "unreachable")


@dataclass(frozen=True, slots=True)
class Run:
    """One question, asked of one model.

    Attributes:
        question: one of `QUESTIONS`.
        model: name of its file.
        seed: of the calibration samples.
        options: all that decides what comes out, plain JSON values.
    """

    question: str
    model: str
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Return its name: what ``--only`` looks for, such as ``accuracy/fashion_vit/0.6/2``."""
        return "/".join((self.question, self.model, str(self.options["target"]), str(self.seed)))

    @property
    def trained(self) -> bool:
        """Tell whether the model is one of the accuracy benchmark, with data."""
        return self.model in TRAINED


def runs(question: str, *, quick: bool = False) -> Iterator[Run]:
    """Yield every run of a question; ``quick`` leaves the first models, targets and seeds, and few pairs."""
    made = {"delivered": _delivered, "prediction": _prediction, "unreachable": _unreachable}
    found = list(made[question]() if question in made else _trained(question))
    if not quick:
        yield from found
        return
    for run in found:
        first_target = (question != "accuracy" and question != "torch_pruning") or run.options[
            "target"
        ] == TARGETS[0]
        if run.seed == SEEDS[0] and first_target and run.model in _QUICK:
            yield Run(run.question, run.model, run.seed, {**run.options, "pairs": 20})


_QUICK = ("mobilenet_v2", "resnet18", "digits_vit")


def _delivered() -> Iterator[Run]:
    for model in DELIVERED:
        yield Run("delivered", model, 0, _options(model, TARGET, THREADS, pairs=120))


def _trained(question: str) -> Iterator[Run]:
    for model, batch in TRAINED.items():
        for target in TARGETS:
            for seed in SEEDS if question == "accuracy" else SEEDS[:1]:
                yield Run(question, model, seed, {**_options(model, target, 1, pairs=60), "batch": batch})


def _prediction() -> Iterator[Run]:
    for model in PREDICTED:
        yield Run("prediction", model, 0, _options(model, TARGET, 1, pairs=60))


def _unreachable() -> Iterator[Run]:
    for model, target, more in UNREACHABLE:
        yield Run("unreachable", model, 0, {**_options(model, target, THREADS, pairs=0), "more": list(more)})


def _options(model: str, target: float, threads: int, *, pairs: int) -> dict[str, Any]:
    shapes = {name: list(shape) for name, shape in INPUT_SHAPES.get(model, {}).items()}
    return {
        "target": target, "threads": threads, "pairs": pairs, "time_limit": TIME_LIMIT,
        **({"input_shapes": shapes} if shapes else {}),
    }  # fmt: skip
