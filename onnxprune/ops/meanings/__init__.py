"""All torch meanings of operators, loaded: importing a family's file files its meanings. Needs torch."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

FAMILIES = tuple(import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))

__all__ = ["FAMILIES"]
