"""Options of commands that tune weights, and the settings that they become."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from onnxprune_cli import options
from onnxprune_cli.options import Decorator, count, name, option, share, together

if TYPE_CHECKING:
    from onnxprune.tuning import Tuning

_positive = click.FloatRange(min=0, min_open=True)


def aims() -> Decorator:
    """What the loss is made of."""
    return together(
        name(
            "--loss", default="auto", help="From labels: auto, cross_entropy, mse, none, or module:function."
        ),
        share(
            "--distil", help="Weight of the original's outputs; by default 1 without labels, 0.7 with them."
        ),
        name("--distil-loss", default="auto", help="For these: kl (classes), mse, or auto."),
        option("--temperature", type=_positive, default=2.0, metavar="T", help="Softens classes in kl."),
        option("--match", multiple=True, metavar="NAME", help="Inner value to keep as it was; repeatable."),
    )


def steps() -> Decorator:
    """How long, and in which portions."""
    return together(
        option(
            "--epochs", type=_positive, metavar="N", help="Passes over the data; 10 where nothing is said."
        ),
        count("--steps", help="Steps of the optimizer, instead of epochs."),
        count("--accumulate", default=1, help="Runs whose gradients make up one step."),
    )


def batch() -> Decorator:
    """``--batch``."""
    return count(
        "--batch", default=32, help="Samples in one run, over all processes, where the batch is free."
    )


def optimizer() -> Decorator:
    """How weights move."""
    return together(
        name("--optimizer", default="adam", help="adam, adamw or sgd."),
        option("--learning-rate", type=_positive, metavar="RATE",
               help="The highest; by default 0.001, for sgd 0.01."),
        name("--learning-rate-schedule", default="cosine", help="constant, linear, cosine or step."),
        share("--warm-up", default=0.1, help="Share of the steps in which the learning rate rises."),
        share("--momentum", default=0.9, help="Of sgd."),
        option("--nesterov", is_flag=True, help="sgd looks ahead by its momentum."),
        option("--weight-decay", type=click.FloatRange(min=0), default=0.0, metavar="RATE",
               help="Not of biases."),
        option("--clip", type=click.FloatRange(min=0), default=1.0, metavar="LENGTH",
               help="Longest gradient; 0 for any."),
        name("--precision", default="float32", help="float32, bfloat16, or float16 on a GPU."),
        name("--batchnorm", "batch_norm", default="eval", help="eval: as in the file; train: of each batch."),
        name("--device", default="cpu", help="cpu or cuda."),
    )  # fmt: skip


def looks() -> Decorator:
    """When validation samples are looked at, and when that ends a run."""
    return together(
        count("--evaluate-every", help="Steps between looks at validation samples; by default one pass."),
        count("--patience", help="Stop after so many looks without a better result."),
    )


def checkpoints() -> Decorator:
    """``--checkpoint``, ``--checkpoint-every`` and ``--resume``."""
    return together(
        click.option(
            "--checkpoint", type=options.FILE, metavar="DIR", help="Keep the state of the run here."
        ),
        count("--checkpoint-every", help="Steps between checkpoints; by default one at each look."),
        option("--resume", is_flag=True, help="Go on from the checkpoint, if there is one."),
    )


def settings_of(choices: dict[str, Any]) -> Tuning:
    """Take the settings of tuning out of what was chosen.

    Raises:
        UsageError: they make no sense.
    """
    from dataclasses import fields

    from onnxprune.tuning import Tuning

    chosen = {field.name: choices.pop(field.name) for field in fields(Tuning) if field.name in choices}
    chosen["clip"] = chosen["clip"] or None
    return Tuning(**{**chosen, "match": tuple(chosen["match"])})
