"""Options that several commands share, and the types of their values."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

#: A file or folder; whether it is there and sound is for the library to say, which knows what to do about it.
FILE = click.Path(path_type=Path)

#: As click's, with the default in the help text.
option = functools.partial(click.option, show_default=True)

share = functools.partial(option, type=click.FloatRange(0, 1), metavar="SHARE")
count = functools.partial(option, type=click.IntRange(min=1), metavar="N")
name = functools.partial(option, metavar="NAME")


def example(*lines: str) -> str:
    """Return the epilog of a command's help: a command line that works."""
    return "\b\nExample:\n  " + " \\\n    ".join(lines)


def input_shapes() -> Decorator:
    """``--input-shape``, which becomes a mapping from names to sizes, or None."""
    return click.option(
        "--input-shape", "input_shapes", multiple=True, callback=_input_shapes, metavar="NAME=SIZES",
        help="Sizes of an input with symbolic axes, such as x=1,3,224,224; repeat it for each input.",
    )  # fmt: skip


def _input_shapes(
    ctx: click.Context, param: click.Parameter, texts: Sequence[str]
) -> Mapping[str, tuple[int, ...]] | None:
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name_, _, sizes = text.rpartition("=")  # a name may hold anything, an equals sign too
        numbers = sizes.split(",")
        if not name_ or not all(number.isdecimal() and int(number) > 0 for number in numbers):
            form = "NAME=SIZE,SIZE,... such as x=1,3,224,224"
            raise click.BadParameter(f"{text!r} is not of the form {form}", ctx, param)
        if name_ in shapes:
            raise click.BadParameter(f"{name_!r} is named twice", ctx, param)
        shapes[name_] = tuple(int(number) for number in numbers)
    return shapes or None


def alignment() -> Decorator:
    """``--align``, which becomes ``auto`` or a positive number."""
    return option(
        "--align", default="auto", callback=_alignment, metavar="auto|N",
        help="Kept channel counts are multiples of this; auto avoids counts that are slow on CPUs.",
    )  # fmt: skip


def _alignment(ctx: click.Context, param: click.Parameter, text: str) -> int | str:
    if text == "auto":
        return text
    if not text.isdecimal() or int(text) == 0:
        raise click.BadParameter(f"{text!r} is neither auto nor a positive number", ctx, param)
    return int(text)


def of_forward(texts: Sequence[str]) -> Any:
    """Return the shapes of the inputs of a PyTorch module: by name, in order, or None if there are none.

    Raises:
        UsageError: a text is malformed, or some inputs are named and some are not.
    """
    from onnxprune.errors import UsageError
    from onnxprune.importers import parse_input_shape

    pairs = [parse_input_shape(text) for text in texts]
    named = {name: shape for name, shape in pairs if name is not None}
    if len(named) == len(pairs):
        return named or None
    if named:
        raise UsageError("name all inputs, each once, or none: NAME=SIZES, or SIZES in the order of forward")
    return [shape for _, shape in pairs]


def only_one(given: Mapping[str, Any], *names: str) -> None:
    """Refuse two options that say the same in two ways.

    Raises:
        click.UsageError: naming those that were given.
    """
    present = [f"--{name.replace('_', '-')}" for name in names if given.get(name) is not None]
    if len(present) > 1:
        raise click.UsageError(f"{' and '.join(present)} exclude each other; give one")


def output_file() -> Decorator:
    """``-o``: the file that is written."""
    return click.option(
        "-o", "--output", type=FILE, required=True, metavar="OUT", help="The file to write; never an input."
    )


def target() -> Decorator:
    """``--amount``, or ``--target-macs``, ``--target-params`` and ``--target-size``: how much goes."""
    return together(
        share("--amount", help="Share of the channels, layers or weights to remove."),
        share("--target-macs", help="Share of the multiply-accumulates that may stay."),
        share("--target-params", help="Share of the parameters that may stay."),
        share("--target-size", help="Share of the bytes of all weights that may stay."),
    )


def check_targets(given: Mapping[str, Any]) -> None:
    """Refuse an amount beside targets.

    Raises:
        click.UsageError: naming those that were given.
    """
    for name_ in given:
        if name_.startswith("target_"):
            only_one(given, "amount", name_)


def lacks_budget(given: Mapping[str, Any]) -> bool:
    """Tell whether a pattern needs an amount or a target, and has none."""
    if given["pattern"] == "dead" or re.fullmatch(r"\d+:\d+", given["pattern"]):
        return False
    return all(given[name_] is None for name_ in given if name_ == "amount" or name_.startswith("target_"))


def limits() -> Decorator:
    """``--protect``, ``--allow-inexact`` and ``--floor``: what stays whatever the target."""
    return together(
        option(
            "--protect", multiple=True, metavar="GLOB",
            help="Groups, branches or tensors that stay; repeatable.",
        ),
        option("--allow-inexact", is_flag=True, help="Also cut what normalisation takes statistics over."),
        share("--floor", default=0.1, help="Least share of a group, or kind of layers, that stays."),
    )  # fmt: skip


def external_data() -> Decorator:
    """``--external-data``; None where neither form is asked for."""
    return click.option(
        "--external-data/--inline", default=None,
        help="Keep weights in a file beside the model, or in it. [default: as it was]",
    )  # fmt: skip


def sparse_storage() -> Decorator:
    """``--sparse-storage``; None where neither form is asked for."""
    return click.option(
        "--sparse-storage/--dense-storage", default=None,
        help="Store weights as sparse tensors where that is smaller, or never. This saves disk, not time or "
        "memory: ONNX Runtime makes them dense. [default: as they were]",
    )  # fmt: skip


def together(*decorators: Decorator) -> Decorator:
    """Return several options as one, in their order."""
    return functools.reduce(lambda outer, inner: lambda function: outer(inner(function)), decorators)


def runs_on_data() -> Decorator:
    """``--batch``, ``--memory-limit`` and ``--threads``: how models are run on data, not what is done."""
    return together(
        count("--batch", default=32, help="Samples in one run on data, where the batch is free."),
        option(
            "--memory-limit", default="1GB", callback=size, metavar="SIZE",
            help="What work on data may keep in memory, beside model and data: bytes, or as 512MB, 2GB.",
        ),
        threads(),
    )  # fmt: skip


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(ctx: click.Context, param: click.Parameter, text: str | None) -> int | None:
    """Read a size such as 512MB, 2GB, or a number of bytes: the callback of an option.

    Raises:
        click.BadParameter: it is none.
    """
    if text is None:
        return None
    number = text.rstrip("BbKkMmGgTtIi ")
    unit = text[len(number) :].strip().upper().removesuffix("B").removesuffix("I")
    try:
        bytes_ = int(float(number) * _UNITS[unit])
    except (KeyError, ValueError, OverflowError):  # the last one: infinity
        bytes_ = 0
    if bytes_ < 1:
        raise click.BadParameter(f"{text!r} is no size such as 512MB, 2GB, or a number of bytes", ctx, param)
    return bytes_


def threads() -> Decorator:
    """``--threads`` of ONNX Runtime."""
    return option(
        "--threads", type=click.IntRange(min=0), default=1, metavar="N",
        help="Threads of ONNX Runtime; 0 for one per core.",
    )  # fmt: skip


def provider() -> Decorator:
    """``--provider``: where models run."""
    known = "cpu, cuda, tensorrt, openvino, coreml, directml ..."
    return name("--provider", default="cpu", help=f"Where models run: {known}")


def execution() -> Decorator:
    """Everything that says where and how models run; `as_execution` makes one value of it."""
    return together(
        provider(),
        provider_options(),
        threads(),
        option("--spinning/--no-spinning", default=False, help="Let idle threads spin."),
        option("--arena/--no-arena", default=True, help="Keep the memory of a run for the next one."),
        click.option(
            "--pin", metavar="CORES", help="Cores to run on, one for each thread, such as 0-1 or 0,2."
        ),
    )


def as_execution(setting: dict[str, Any]) -> Any:
    """Take the options of `execution` out of those of a command; return the `onnxprune.Execution`."""
    from onnxprune import Execution

    names = ("provider", "threads", "spinning", "arena", "pin")
    chosen = {name_: setting.pop(name_) for name_ in names}
    return Execution(options=tuple(setting.pop("provider_options").items()), **chosen)


def provider_options() -> Decorator:
    """``--provider-option``, which becomes a mapping."""
    return click.option(
        "--provider-option", "provider_options", multiple=True, callback=_pairs, metavar="KEY=VALUE",
        help="An option of the provider, as ONNX Runtime calls it, such as device_id=1; repeatable.",
    )  # fmt: skip


def _pairs(ctx: click.Context, param: click.Parameter, texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not of the form KEY=VALUE", ctx, param)
        if key in pairs:
            raise click.BadParameter(f"{key!r} is given twice", ctx, param)
        pairs[key] = value
    return pairs


def numbers(flag: str, *, least: int, help_text: str) -> Decorator:
    """Return an option that becomes a list of whole numbers, empty where it is not given."""

    def parse(ctx: click.Context, param: click.Parameter, text: str | None) -> list[int]:
        words = (text or "").replace(",", " ").split()
        if text is not None and not words:
            raise click.BadParameter("give one number or more", ctx, param)
        if not all(word.isdecimal() and len(word) < 10 and int(word) >= least for word in words):
            form = f"whole numbers from {least} on, such as 1,2,4"
            raise click.BadParameter(f"{text!r} is no list of {form}", ctx, param)
        return list(dict.fromkeys(int(word) for word in words))

    return click.option(flag, callback=parse, metavar="NUMBERS", help=help_text)


def recover(default: str | None) -> Decorator:
    """``--recover``: how what is left is repaired with data."""
    usual = " [default: with --data, as it was]" if default is None else ""
    return option(
        "--recover", default=default, metavar="NAME",
        help="Repair what is left with --data, no labels needed: none, bias, statistics, or reconstruct (the "
        f"best: weights and biases by least squares).{usual}",
    )  # fmt: skip


def rounds() -> Decorator:
    """``--rounds`` of removing and repairing."""
    return option(
        "--rounds", type=click.IntRange(min=1), default=1, metavar="N",
        help="Remove and repair in so many rounds, much at first and little at the end.",
    )  # fmt: skip


def seed() -> Decorator:
    """``--seed`` of everything random."""
    return option("--seed", type=click.IntRange(min=0), default=0, metavar="N", help="Of everything random.")


def amounts() -> Decorator:
    """``--amounts``, which becomes a list of shares."""
    return option(
        "--amounts", default="0.1 0.25 0.5 0.75 0.9", callback=_amounts, metavar="SHARES",
        help="Shares of each group to remove.",
    )  # fmt: skip


def _amounts(ctx: click.Context, param: click.Parameter, text: str) -> list[float]:
    words = text.replace(",", " ").split()
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of shares such as 0.25,0.5", ctx, param) from None
    if not numbers or not all(0 < number < 1 for number in numbers):
        raise click.BadParameter(f"{text!r}: each share lies between 0 and 1", ctx, param)
    return numbers


def before() -> Decorator:
    """``--before``: a model file, or None."""
    return click.option(
        "--before", type=FILE, metavar="FILE",
        help="The same graph with earlier weights, for the scores movement and movement_distance.",
    )  # fmt: skip


def max_drift(when: str) -> Decorator:
    """``--max-drift``: a share, or None."""
    text = f"{when}: exit with status 3 where more than this share of what goes is something else."
    return share("--max-drift", help=text)


def cache() -> Decorator:
    """``--cache``: a folder, or None."""
    return click.option(
        "--cache", type=FILE, metavar="DIR",
        help="Keep what each trial of sensitivity found in this folder, and go on where a run stopped.",
    )  # fmt: skip


def jobs(what: str = "run trials") -> Decorator:
    """``--jobs``: processes."""
    return option(
        "--jobs", type=click.IntRange(min=0), default=1, metavar="N",
        help=f"Processes that {what}; 0 for one per core.",
    )  # fmt: skip


def scheduler() -> Decorator:
    """``--scheduler``: an address, or None."""
    return click.option(
        "--scheduler", metavar="ADDRESS",
        help="Run them on a Dask cluster that you trust: tcp://HOST:PORT, or tls://HOST:PORT.",
    )  # fmt: skip
