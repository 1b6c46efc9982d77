"""The forms of a run's report as files: which there are, and writing them, whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.errors import UsageError
from onnxprune.messages import visible
from onnxprune.model.atomic import check_target
from onnxprune.model.together import Together

if TYPE_CHECKING:
    from onnxprune.record import Record


def _json(record: Record) -> str:
    return record.to_text()


def _html(record: Record) -> str:
    from onnxprune.report.html import html

    return html(record)


def _markdown(record: Record) -> str:
    from onnxprune.report.markdown import markdown

    return markdown(record)


def _junit(record: Record) -> str:
    from onnxprune.report.junit import junit

    return junit(record)


#: From a record to the text of a file; what draws is imported once it is asked for.
FORMS: Mapping[str, Callable[[Record], str]] = {
    "json": _json,
    "html": _html,
    "markdown": _markdown,
    "junit": _junit,
}


def check_forms(targets: Mapping[str, Path], *inputs: Path) -> None:
    """Refuse files that can't be written, before anything is drawn.

    Args:
        targets: files by form, a key of `FORMS`.
        inputs: files that are read, and never written over.

    Raises:
        UsageError: two forms, or a form and an input, are the same file.
        OutputError: a file can't be written there.
    """
    taken = {path.resolve(): "an input of this command" for path in inputs}
    for form, path in targets.items():
        where = path.resolve()
        if where in taken:
            raise UsageError(f"{visible(path)}: is {taken[where]}; choose another file for {form}")
        taken[where] = f"where {form} goes"
        check_target(path)


def write_forms(record: Record, targets: Mapping[str, Path], together: Together | None = None) -> None:
    """Draw a record in several forms, and write each to its file once all of them are drawn.

    Args:
        record: of a run.
        targets: files by form, a key of `FORMS`.
        together: what else they appear with, or not at all; without it, they appear with each other.

    Raises:
        OutputError: a file can't be written; then none is.
    """
    drawn = {form: FORMS[form](record).encode() for form in targets}
    with contextlib.ExitStack() as stack:
        together = together or stack.enter_context(Together())
        for form, contents in drawn.items():
            together.write(targets[form], contents)
