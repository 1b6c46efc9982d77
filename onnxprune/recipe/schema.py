"""What a recipe may say: every key, its type, what it means.

Keys that name files are paths: they are relative to the recipe, and ``${NAME}`` in them stands for an
environment variable. Nowhere else does the environment come in.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from onnxprune.gates.settings import GateSettings
from onnxprune.measure.turns import LEAST_PAIRS, MOST_PAIRS
from onnxprune.user_code import is_reference

#: Grows when a key changes its meaning or goes.
SCHEMA: Final = 1

_VARIABLE = re.compile(r"\$\{([^}]*)\}")

#: Beside files, some keys take noise by this name.
_NOISE = re.compile(r"random(:[1-9][0-9]*)?")


class Place:
    """Where a recipe lies: what its relative paths and its variables are looked up in.

    Args:
        folder: of the recipe.
        environment: variables by name.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.environment = os.environ if environment is None else environment

    def path(self, text: str) -> str:
        """Return a path as it is from the current folder, variables in it replaced.

        Raises:
            ValueError: a variable is not set, or has no name.
        """
        expanded = _VARIABLE.sub(self._value, text)
        if not expanded or "\0" in expanded:
            raise ValueError("names no file")
        return str(self.folder / expanded)  # an absolute path stays as it is

    def _value(self, match: re.Match[str]) -> str:
        name = match[1]
        if name not in self.environment:
            raise ValueError(f"the environment variable {name!r} is not set")
        return self.environment[name]


def _placed(value: Any, info: ValidationInfo) -> Any:
    place = info.context
    return place.path(value) if isinstance(value, str) and isinstance(place, Place) else value


def _placed_source(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and (is_reference(value) or _NOISE.fullmatch(value)):
        return value
    return _placed(value, info)


#: What tells paths among other texts.
PATHS = (_placed, _placed_source)

#: A file or a folder.
RecipePath: TypeAlias = Annotated[str, BeforeValidator(_placed)]

#: A file or folder, ``package.module:function``, or (where data is asked for) ``random:N``.
Source: TypeAlias = Annotated[str, BeforeValidator(_placed_source)]

Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class ImportOptions(_Section):
    """How a PyTorch source becomes an ONNX file, as for ``onnxprune import``."""

    input_shapes: dict[str, list[Count]] | None = Field(None, description="shape of each input of forward")
    opset: Count | None = Field(None, description="ONNX operator set; the exporter's default without it")
    dynamic_batch: bool = Field(True, description="make the batch axis free where the module allows it")
    keep_batch_norm: bool = Field(False, description="leave BatchNormalization nodes in the graph")


class Model(_Section):
    """The model that is compressed."""

    path: Source = Field(description="an .onnx file; or a .pt2 file or package.module:factory to import")
    options: ImportOptions = Field(
        ImportOptions(), alias="import", description="how a PyTorch source is exported"
    )


class Data(_Section):
    """Samples: see the data section of the README."""

    calibration: Source | None = Field(
        None,
        description="for scores, repair, tuning and quantization: .npz, folder, module:function, random:N",
    )
    evaluation: Source | None = Field(None, description="for accuracy and gates; never used to compress")
    metric: str = Field("top1", description="top1, topK, mse, cosine, agreement, or module:function")
    output: str | None = Field(None, description="name of the output that is judged; the first by default")


class Run(_Section):
    """How the run works."""

    folder: RecipePath = Field(
        "run", description="keeps results of stages, so that only what changed runs again"
    )
    seed: int = Field(0, ge=0, description="of every random choice")
    threads: int = Field(1, ge=0, description="of ONNX Runtime; 0 for one per core")
    batch: Count = Field(32, description="samples of one run on data, where the batch is free")
    memory_limit: Count = Field(4 << 30, description="bytes that work on data may keep at once")
    jobs: int = Field(1, ge=0, description="processes that measure sensitivity; 0 for one per core")
    scheduler: str | None = Field(
        None, description="a Dask scheduler whose workers do it instead, as tcp://HOST:PORT"
    )
    provider: str = Field("cpu", description="where latency is measured")
    provider_options: dict[str, str] = Field({}, description="of the provider, as ONNX Runtime calls them")
    pairs: int = Field(
        100, ge=LEAST_PAIRS, le=MOST_PAIRS, description="rounds of the interleaved measurement of latency"
    )
    latency_batch: Count | None = Field(
        None, description="batch size that is timed, where it is free; 1 by default"
    )
    input_shapes: dict[str, list[Count]] = Field({}, description="sizes for symbolic axes, by input name")
    memory: bool = Field(False, description="measure memory, also where no gate asks for it")

    @model_validator(mode="before")
    @classmethod
    def _usual_folder(cls, values: Any) -> Any:
        """Let the default folder lie beside the recipe, too."""
        return {"folder": "run", **values} if isinstance(values, dict) else values


class TuningOptions(_Section):
    """How weights are tuned: the settings of `onnxprune.Tuning`, which checks them further."""

    steps: Count | None = Field(None, description="of the optimizer; instead of epochs")
    epochs: float | None = Field(None, gt=0, description="passes over the data; 10 by default")
    batch: Count = Field(32, description="samples that go through the model at once")
    accumulate: Count = Field(1, description="batches whose gradients make up one step")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="the optimizer")
    learning_rate: float | None = Field(None, gt=0, description="the highest one")
    learning_rate_schedule: Literal["constant", "linear", "cosine", "step"] = Field(
        "cosine", description="how it goes on"
    )
    warm_up: float = Field(0.1, ge=0, lt=1, description="share of the steps in which it rises")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    nesterov: bool = Field(False, description="sgd looks ahead")
    weight_decay: float = Field(0.0, ge=0, description="of tensors of two axes and more")
    clip: float | None = Field(1.0, gt=0, description="longest gradient over all weights")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="between layers")
    loss: str = Field("auto", description="auto, cross_entropy, mse, none or module:function")
    distil: float | None = Field(None, ge=0, le=1, description="weight of the original's outputs in the loss")
    distil_loss: Literal["auto", "kl", "mse"] = Field("auto", description="how outputs are compared")
    temperature: float = Field(2.0, gt=0, description="of both softmaxes of kl")
    match: list[str] = Field([], description="inner values that shall be as in the original")
    batch_norm: Literal["eval", "train"] = Field("eval", description="statistics of the file, or of batches")
    device: str = Field("cpu", description="as torch names it")
    evaluate_every: Count | None = Field(None, description="steps between looks at validation samples")
    patience: Count | None = Field(None, description="looks without a better result after which to stop")
    checkpoint_every: Count | None = Field(None, description="steps between checkpoints")
    validation: Annotated[float, Field(ge=0, lt=1)] | Source = Field(
        0.1, description="samples that the best weights are chosen by, or the share that is set aside"
    )

    def settings(self) -> dict[str, Any]:
        """Return what `onnxprune.Tuning` takes, without the seed."""
        return {**self.model_dump(exclude={"validation"}), "match": tuple(self.match)}


class GradualOptions(TuningOptions):
    """How weights are tuned while more and more of the model goes, as for ``prune --steps``."""

    schedule: Literal["one-shot", "linear", "cubic", "geometric"] | None = Field(
        None, description="how the share that goes grows"
    )
    initial: float = Field(0.0, ge=0, lt=1, description="share that goes at the first pruning already")
    pruning_warm_up: float | None = Field(None, ge=0, lt=1, description="share of the steps before it")
    frequency: Count | None = Field(None, description="steps from one pruning to the next")
    freeze: float = Field(0.25, ge=0, lt=1, description="share of the steps after the last pruning")
    rounds: Count = Field(1, description="prune and tune in so many rounds")
    rewind: RecipePath | None = Field(None, description="earlier weights that each round starts from")

    def settings(self) -> dict[str, Any]:
        """Return what `onnxprune.Tuning` takes, without the seed."""
        own = {
            "validation",
            "schedule",
            "initial",
            "pruning_warm_up",
            "frequency",
            "freeze",
            "rounds",
            "rewind",
        }
        return {**self.model_dump(exclude=own), "match": tuple(self.match)}


class _Stage(_Section):
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$",
        description="in reports; the kind by default",
    )


class Cleanup(_Stage):
    """Removes what does nothing: channels that are dead. The model computes the same."""

    kind: Literal["cleanup"]


class Prune(_Stage):
    """Removes what matters least: the options of ``onnxprune prune``."""

    kind: Literal["prune"]
    pattern: str = Field(
        "channels", description="channels, heads, head_dim, experts, layers, unstructured, N:M, block:RxC"
    )
    amount: float | None = Field(None, ge=0, lt=1, description="share of channels or weights that goes")
    target_macs: Share | None = Field(None, description="share of the multiply-accumulates that may stay")
    target_params: Share | None = Field(None, description="share of the parameters that may stay")
    target_size: Share | None = Field(None, description="share of the bytes of all weights that may stay")
    target_latency: Share | str | None = Field(
        None, description='share of the time of one run that may stay, or milliseconds as "12ms"'
    )
    score: str | None = Field(None, description="l2, obs, wanda, taylor, ...: see docs/scores.md")
    before: RecipePath | None = Field(None, description="earlier weights, for the score movement")
    scope: str | None = Field(None, description="uniform, global, sensitivity, knapsack, isomorphic or owl")
    align: Literal["auto"] | Count = Field("auto", description="kept channel counts are multiples of this")
    protect: list[str] = Field([], description="globs of groups and tensors that stay whole")
    allow_inexact: bool = Field(False, description="also channels that normalisation takes statistics over")
    floor: float = Field(0.1, ge=0, le=1, description="least share of every group that stays")
    data: Source | None = Field(None, description="samples, in place of data.calibration")
    recover: Literal["none", "bias", "statistics", "reconstruct"] = Field(
        "none", description="repair of what is left, from data"
    )
    rounds: Count = Field(1, description="of removing and repairing")
    latency_percentile: float = Field(50.0, gt=0, lt=100, description="that target_latency is about")
    time_limit: float = Field(240.0, gt=0, description="seconds that timing layers may take")
    tuning: GradualOptions | None = Field(None, description="tune while it is pruned, as prune --steps does")
    optional: bool = Field(False, description="go on where nothing can be pruned, instead of stopping")


class Apply(_Stage):
    """Removes what a plan says, from a re-trained model of the same graph: ``onnxprune apply``."""

    kind: Literal["apply"]
    plan: RecipePath = Field(description="folder of the plan")
    refresh: bool = Field(False, description="score anew: as many channels as before, perhaps others")
    reallocate: bool = Field(False, description="decide anew by the plan's recipe, how many go where as well")
    max_drift: float | None = Field(None, ge=0, le=1, description="most of what goes that may have moved")
    data: Source | None = Field(None, description="samples, in place of data.calibration")
    recover: Literal["none", "bias", "statistics", "reconstruct"] | None = Field(
        None, description="repair; by default what the plan was made with"
    )


class Finetune(_Stage, TuningOptions):
    """Tunes the weights that are left, zeros held: the options of ``onnxprune finetune``."""

    kind: Literal["finetune"]
    data: Source | None = Field(None, description="samples, in place of data.calibration")
    teacher: Literal["original", "none"] = Field("original", description="whose outputs it learns from")
    hold: Literal["auto", "none"] = Field("auto", description="auto: zeros stay zero")

    def settings(self) -> dict[str, Any]:
        """Return what `onnxprune.Tuning` takes, without the seed."""
        own = {"validation", "kind", "name", "data", "teacher", "hold"}
        return {**self.model_dump(exclude=own), "match": tuple(self.match)}


class Quantize(_Stage):
    """Fewer bits for each number: the options of ``onnxprune quantize``."""

    kind: Literal["quantize"]
    form: Literal["int8", "dynamic", "int4", "float16"] = Field("int8", description="of the numbers")
    data: Source | None = Field(None, description="samples, in place of data.calibration")
    max_drop: float | None = Field(
        None, ge=0, description="layers go back to float until the metric is within this of the original"
    )
    keep_float: list[str] = Field([], description="globs of layers that stay float")
    per_channel: bool = Field(True, description="a scale for each output channel of a weight")
    calibration: Literal["minmax", "percentile", "entropy"] = Field(
        "minmax", description="how ranges of activations are taken from samples"
    )
    computing: Literal["auto", "integer", "dynamic", "float"] = Field(
        "auto", description="of int8: auto takes what is fastest here, which is timed"
    )
    block_size: int = Field(32, ge=16, description="weights that share a scale in int4: a power of two")
    equalize: Literal["auto", "on", "off"] = Field(
        "auto", description="even out the ranges of neighbouring layers, where it helps"
    )
    correct_bias: Literal["auto", "on", "off"] = Field(
        "auto", description="let biases make up for the mean error of a layer, where it helps"
    )


Stage: TypeAlias = Cleanup | Prune | Apply | Finetune | Quantize
STAGES: tuple[type[_Stage], ...] = (Cleanup, Prune, Apply, Finetune, Quantize)
KINDS = tuple(get_args(stage.model_fields["kind"].annotation)[0] for stage in STAGES)


class Output(_Section):
    """What is written. The model and its plans appear only if every gate passed; reports always do."""

    model: RecipePath = Field(description="the compressed model")
    plan: RecipePath | None = Field(
        None, description="folder of the plan, which applies to re-trained models"
    )
    json_: RecipePath | None = Field(None, alias="json", description="the whole record of the run")
    html: RecipePath | None = Field(None, description="one page, for people")
    markdown: RecipePath | None = Field(None, description="a summary for a comment on a pull request")
    junit: RecipePath | None = Field(None, description="gates and checks as test cases")
    accepted: RecipePath | None = Field(
        None, description="the record again, only if the model is accepted: the baseline of later runs"
    )
    external_data: bool | None = Field(None, description="weights beside the model; as it was by default")
    sparse_storage: bool | None = Field(None, description="weights stored sparse where that is smaller")


class Recipe(_Section):
    """The whole file."""

    schema_number: Literal[1] = Field(SCHEMA, alias="schema", description="of recipes; 1")
    title: str | None = Field(None, max_length=200, description="of the reports; the model's name by default")
    model: Model = Field(description="what is compressed")
    data: Data = Field(Data(), description="samples")
    run: Run = Field(Run(), description="how the run works")
    stages: list[Annotated[Stage, Field(discriminator="kind")]] = Field(
        min_length=1, description="in their order"
    )
    gates: GateSettings = Field(GateSettings(), description="what the result must be")
    output: Output = Field(description="what is written")

    @model_validator(mode="before")
    @classmethod
    def _usual_run(cls, values: Any) -> Any:
        """Let a recipe without [run] have its defaults, which depend on where it lies."""
        return {"run": {}, **values} if isinstance(values, dict) else values

    @property
    def stage_names(self) -> tuple[str, ...]:
        """A name for each stage: its own, or its kind, numbered where it would come up twice."""
        wanted = [stage.name or stage.kind for stage in self.stages]
        return tuple(
            name if wanted.count(name) == 1 else f"{name}-{wanted[: place + 1].count(name)}"
            for place, name in enumerate(wanted)
        )
