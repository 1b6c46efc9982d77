"""What is run: which patterns, scores and repairs on which model, with which seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

SEEDS = (0, 1, 2)
#: What a user gets who names no score.
OPEN = "(default)"
SCORES = ("random", "l2", "wanda", "obs", OPEN)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of the benchmark.

    Attributes:
        name: of its files.
        data: folder of its data.
        attention: has heads.
    """

    name: str
    data: str
    attention: bool = False


MODELS = (
    Model("digits_residual", "digits"),
    Model("digits_vit", "digits", attention=True),
    Model("fashion_resnet", "fashion"),
    Model("fashion_vit", "fashion", attention=True),
    Model("text_direction", "text_direction"),
)

#: Options of `onnxprune.prune` by what the table calls them: zeros, the shapes stay.
MASKS: Mapping[str, Mapping[str, Any]] = {
    "unstructured 50 %": {"pattern": "unstructured", "amount": 0.5},
    "unstructured 70 %": {"pattern": "unstructured", "amount": 0.7},
    "unstructured 90 %": {"pattern": "unstructured", "amount": 0.9},
    "2:4": {"pattern": "2:4"},
}

#: The same, for what shrinks.
CUTS: Mapping[str, Mapping[str, Any]] = {
    "channels to 0.7 of the MACs": {"pattern": "channels", "target_macs": 0.7},
    "channels to 0.5 of the MACs": {"pattern": "channels", "target_macs": 0.5},
    "channels to 0.3 of the MACs": {"pattern": "channels", "target_macs": 0.3},
    "channels to 0.25 of the MACs": {"pattern": "channels", "target_macs": 0.25},
}
HEADS: Mapping[str, Mapping[str, Any]] = {
    "half of the heads": {"pattern": "heads", "amount": 0.5},
    "half of all heads and hidden units": {"pattern": "channels", "amount": 0.5},
}

REPAIRS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "bias": {"recover": "bias"},
    "statistics": {"recover": "statistics"},
    "reconstruct": {"recover": "reconstruct"},
    "reconstruct, 5 rounds": {"recover": "reconstruct", "rounds": 5},
}

#: What ``--quick`` leaves of the patterns.
QUICK = ("unstructured 70 %", "2:4", "channels to 0.5 of the MACs", "half of all heads and hidden units")


@dataclass(frozen=True, slots=True)
class Run:
    """One model, pruned in one way.

    Attributes:
        model: key of `MODELS`.
        way: what goes, in the table's words; empty for the dense model.
        score: what decides which; empty for the dense model.
        repair: key of `REPAIRS`.
        seed: of the random choice, and of the calibration samples.
        options: what `onnxprune.prune` is called with, but for the data and the seed.
        calibrated: takes calibration samples.
    """

    model: Model
    way: str
    score: str
    repair: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = False

    @property
    def key(self) -> str:
        """Return its name: what ``--only`` looks for, such as ``digits_vit/2:4/obs/reconstruct/0``."""
        return "/".join((self.model.name, self.way or "dense", self.score, self.repair, str(self.seed)))


def runs(model: Model, *, quick: bool = False) -> Iterator[Run]:
    """Yield every run of a model, the dense one first.

    There is one seed where nothing depends on it: a magnitude without repair. The two cheaper repairs are
    shown for one score, and several rounds for another.
    """
    yield Run(model, "", "", "none", 0)
    ways = {**MASKS, **CUTS, **(HEADS if model.attention else {})}
    for way, options in ways.items():
        if quick and way not in QUICK:
            continue
        for score in SCORES:
            for repair, more in REPAIRS.items():
                if not _shown(way, score, repair) or (quick and "rounds" in more):
                    continue
                named = {} if score == OPEN else {"score": score}
                calibrated = score in ("wanda", "obs") or repair != "none"
                by_chance = calibrated or score == "random"
                for seed in SEEDS if by_chance and not quick else SEEDS[:1]:
                    yield Run(model, way, score, repair, seed, {**options, **named, **more}, calibrated)


def _shown(way: str, score: str, repair: str) -> bool:
    if score == OPEN:
        return way not in MASKS and repair.startswith("reconstruct")
    if repair in ("bias", "statistics"):
        return way not in MASKS and score == "l2"
    if repair == "reconstruct, 5 rounds":
        return way not in MASKS and score == "obs"
    return True
