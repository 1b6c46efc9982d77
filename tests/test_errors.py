"""The tree of errors is as its module draws it: scripts depend on the exit statuses."""

from __future__ import annotations

import inspect
import re

import pytest

from onnxprune import errors
from onnxprune.errors import NothingToPrune, OnnxPruneError

CLASSES = {
    name: kind
    for name, kind in vars(errors).items()
    if inspect.isclass(kind) and issubclass(kind, OnnxPruneError) and kind is not OnnxPruneError
}

#: Name -> (depth, status), as drawn.
DRAWN = {
    match[2]: (len(match[1]) // 4, int(match[3]))
    for match in re.finditer(
        r"^([|` -]+)-- (\w+) +\((\d)\)", inspect.cleandoc(errors.__doc__ or ""), re.MULTILINE
    )
}


def test_every_error_is_drawn():
    assert DRAWN.keys() == CLASSES.keys()
    assert len(DRAWN) == 16


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_status_is_as_drawn(name):
    assert CLASSES[name].exit_status == DRAWN[name][1]


def test_proof_errors_are_verification_errors():
    inner = {"ProofError": errors.VerificationError, "RunTooLong": errors.RuntimeFailure}
    roots = {name for name, kind in CLASSES.items() if kind.__bases__ == (OnnxPruneError,)}
    assert (
        roots == {name for name, (depth, _) in DRAWN.items() if depth == 1} == CLASSES.keys() - inner.keys()
    )
    assert all(issubclass(CLASSES[name], above) for name, above in inner.items())


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_says_when_it_happens(name):
    assert (inspect.getdoc(CLASSES[name]) or "").endswith(".") or "Attributes" in str(
        inspect.getdoc(CLASSES[name])
    )


def test_reasons_are_kept():
    error = NothingToPrune("nothing", ["a: frozen", "b: frozen"])
    assert str(error) == "nothing"
    assert error.reasons == ("a: frozen", "b: frozen")
    assert NothingToPrune("nothing").reasons == ()


@pytest.mark.parametrize("hostile", ["a\x1b[31mb", "a\nb", "a\0b", "a\u202eb", "a\ud800b"])
def test_what_a_file_puts_into_a_message_is_harmless(hostile):
    failure = NothingToPrune(f"group {hostile} stays", [f"{hostile}: no channel is dead"])
    assert all(text.isprintable() and text.encode() for text in (str(failure), *failure.reasons))
    assert str(type(failure)(str(failure))) == str(failure)  # as when it comes back from a worker


def test_a_message_is_repeated_whole():
    text = "größe: " + "x" * 5000
    assert str(OnnxPruneError(text)) == text
