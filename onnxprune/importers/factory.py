"""``package.module:factory`` -> the object of that name, found as ``python -m`` would find the module."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from onnxprune.errors import ImporterError
from onnxprune.messages import one_line
from onnxprune.registry import did_you_mean


def find(reference: str) -> tuple[ModuleType, Any]:
    """Return the module and the object that ``package.module:name`` refers to; this runs the module.

    Raises:
        ImporterError: no such module or name, or the module raised while it was imported.
    """
    module_name, _, attribute = reference.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise ImporterError(
            f"{one_line(reference)!r} is no source: give a file (.onnx, .pt2) or package.module:factory"
        )
    module = _import(module_name, reference)
    try:
        return module, functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        hint = did_you_mean(attribute, vars(module))
        raise ImporterError(f"{reference}: {module_name} has no {attribute!r}{hint}") from None


def _import(module_name: str, reference: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ImporterError(
                f"{reference}: no module {missing!r} in {Path.cwd()} or among the installed packages"
            ) from error
        raise ImporterError(
            f"{reference}: {module_name} needs {missing!r}, which is not installed"
        ) from error
    except Exception as error:  # the user's code may raise anything; it is theirs to mend
        raise ImporterError(
            f"{reference}: importing {module_name} raised {type(error).__name__}: {one_line(error)}"
        ) from error


def call(function: Any, what: str) -> Any:
    """Call ``function`` of the user's module with no arguments.

    Raises:
        ImporterError: naming ``what`` and the exception that it raised.
    """
    try:
        return function()
    except Exception as error:  # as above
        raise ImporterError(f"{what} raised {type(error).__name__}: {one_line(error)}") from error
