"""onnxprune report."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune_cli import options
from onnxprune_cli.output import Output, reporting

EXAMPLE = options.example("onnxprune report report.json --html report.html --junit report.xml")


@click.command(short_help="Draw the report of a run anew, in other forms.", epilog=EXAMPLE)
@click.argument("record", type=options.FILE, metavar="RECORD")
@click.option("--html", type=options.FILE, metavar="FILE", help="Write one page that stands alone.")
@click.option(
    "--markdown", type=options.FILE, metavar="FILE", help="Write what fits a pull request's comment."
)
@click.option("--junit", type=options.FILE, metavar="FILE", help="Write gates and checks as test cases.")
@reporting
def report(out: Output, record: Path, **targets: Path | None) -> None:
    """Draw the report of a run from RECORD, its JSON document.

    Without a file to write, the Markdown goes to standard output. This only draws: the exit status is 0
    whatever the verdict of the run is, which `onnxprune compress` gave when it ended.
    """
    from onnxprune.record import read_record
    from onnxprune.report.forms import check_forms, write_forms
    from onnxprune.report.summary import summary

    wanted = {form: path for form, path in targets.items() if path is not None}
    check_forms(wanted, record)
    run = read_record(record)
    write_forms(run, wanted)
    if wanted or out.as_json:
        out.show(summary(run), title=f"report of {run.title}", written=wanted)
    else:
        from onnxprune.report.markdown import markdown

        out.print(markdown(run))
