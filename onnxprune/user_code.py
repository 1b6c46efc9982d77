"""Functions of the user's own, named ``module:function``; only ever run because the user typed their name."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from onnxprune.errors import DataError
from onnxprune.messages import one_line
from onnxprune.registry import did_you_mean

_REFERENCE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_reference(text: str) -> bool:
    """Tell whether ``text`` has the form ``package.module:function``."""
    return _REFERENCE.fullmatch(text) is not None


def load_function(reference: str) -> Callable[..., Any]:
    """Import the module of ``package.module:function``, from the current folder too, and return the function.

    Raises:
        DataError: no such module or function, or the module raised while it was imported.
    """
    module_name, _, attribute = reference.partition(":")
    with reporting(reference), current_folder_importable():
        module = importlib.import_module(module_name)
    try:
        function = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        hint = did_you_mean(attribute, vars(module))
        raise DataError(f"{reference}: {module_name} has no {attribute!r}{hint}") from None
    if not callable(function):
        raise DataError(f"{reference}: is no function")
    return function


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Put the current folder first on ``sys.path`` for a while, as ``python -m`` does for good."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with suppress(ValueError):  # the imported code may have changed the list as well
            sys.path.remove(folder)


@contextmanager
def reporting(reference: str) -> Iterator[None]:
    """Turn whatever the user's code raises into a `DataError` that names the code and the exception."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # code that we did not write may raise anything
        raise DataError(f"{reference}: raised {type(error).__name__}: {one_line(error)}") from error
