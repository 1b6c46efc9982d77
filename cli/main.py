"""The onnxprune command: the group of its commands, and how a run ends."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

import click

from onnxprune import containment
from onnxprune.registry import did_you_mean
from onnxprune_cli import endings, options

#: Every command in the order of a job, and the module and function that it lives in.
COMMANDS = {
    "import": ("onnxprune_cli.import_", "import_model"),
    "inspect": ("onnxprune_cli.inspect_", "inspect_model"),
    "advise": ("onnxprune_cli.advise", "advise"),
    "sensitivity": ("onnxprune_cli.sensitivity", "sensitivity"),
    "prune": ("onnxprune_cli.prune", "prune"),
    "apply": ("onnxprune_cli.apply", "apply"),
    "finetune": ("onnxprune_cli.finetune", "finetune"),
    "quantize": ("onnxprune_cli.quantize", "quantize"),
    "verify": ("onnxprune_cli.verify", "verify"),
    "bench": ("onnxprune_cli.bench", "bench"),
    "validate": ("onnxprune_cli.validate", "validate"),
    "compress": ("onnxprune_cli.compress", "compress"),
    "report": ("onnxprune_cli.report", "report"),
}

#: Objects that are made before Python's collector of reference cycles looks at them.
_COLLECTED_AFTER = 100_000


class LazyGroup(click.Group):
    """A group that imports the module of a command when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of a job."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), function)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is meant.

        Raises:
            click.UsageError: there is none of that name; the closest one is named.
        """
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            hint = did_you_mean(args[0], COMMANDS)
            raise click.UsageError(f"no such command {args[0]!r}{hint}; known: {', '.join(COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


EPILOG = """\b
Example:
  onnxprune prune model.onnx -o small.onnx --target-macs 0.5
  onnxprune bench model.onnx small.onnx

\b
Exit status:
  0    done
  1    you must act: one line on stderr says on what, and how
  2    wrong usage
  3    a limit that you gave can't be met
  4    nothing could be pruned; the reasons are listed
  130  interrupted (143: terminated)
"""


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error and what libraries print.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End with status 3 after this time.",
)
@click.option(
    "--memory",
    callback=options.size,
    metavar="SIZE",
    help="Fail beyond this much memory, such as 8GB; by default what the machine has.",
)
@click.version_option(package_name="onnxprune", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, debug: bool, timeout: float | None, memory: int | None) -> None:
    """Make a trained ONNX model smaller and faster, and prove it.

    onnxprune COMMAND --help says more.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        ctx.exit(2)
    if not debug:
        warnings.simplefilter(
            "ignore"
        )  # of libraries, about their own code; what is wrong is an error of ours
    containment.keep_limits(timeout_seconds=timeout, memory_bytes=memory, show_noise=debug)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; whatever goes wrong is one line on stderr."""
    ending = endings.Ending(as_json="--json" in arguments)
    with ending.watched():
        containment.take_signals()
        context = main.make_context("onnxprune", list(arguments))
        ending.context = context
        with context:
            main.invoke(context)
    return ending.status


def run() -> None:
    """Run the command line of this process."""
    endings.open_standard_streams()
    if "_ONNXPRUNE_COMPLETE" in os.environ:
        main.main(prog_name="onnxprune")  # the shell asks what could come next
    arguments = sys.argv[1:]
    # a graph is many objects that live long: to look at the youngest so often took a tenth of the time
    gc.set_threshold(_COLLECTED_AFTER, 20, 20)
    try:
        ended = containment.supervise(lambda: execute(arguments))
    except OSError as error:
        ended = containment.Ended(None, why=f"can't start a process: {error.strerror}")
    sys.exit(endings.after(ended, arguments))
