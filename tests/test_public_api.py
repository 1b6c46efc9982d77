"""The public names: there, complete, typed, documented, and never hidden by a module of the same name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing

import pytest

import onnxprune

FUNCTIONS = sorted(name for name in onnxprune.__all__ if name[0].islower())


def test_all_is_what_is_importable():
    assert list(onnxprune.__all__) == sorted(onnxprune._HOMES)
    assert dir(onnxprune) == sorted(onnxprune.__all__)
    assert all(getattr(onnxprune, name) is not None for name in onnxprune.__all__)


@pytest.mark.parametrize("name", sorted(onnxprune.__all__))
def test_name_is_at_home_where_it_says(name):
    thing = getattr(onnxprune, name)
    assert thing.__name__ == name
    home = onnxprune._HOMES[name]
    assert getattr(importlib.import_module(home), name) is thing
    assert thing.__module__ == home or thing.__module__.startswith(f"{home}.")


def test_no_module_hides_a_public_name():
    """Importing ``onnxprune.x`` sets ``x`` on the package: a function of that name would be gone."""
    modules = [module.name for module in pkgutil.walk_packages(onnxprune.__path__, "onnxprune.")]
    assert len(modules) > 40
    assert [name for name in onnxprune.__all__ if f"onnxprune.{name}" in modules] == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_typed(name):
    function = getattr(onnxprune, name)
    names = {
        "self" if parameter.name == "self" else parameter.name
        for parameter in inspect.signature(function).parameters.values()
    }
    # names that are only imported for type checkers can't be resolved here; that they are written is enough
    written = function.__annotations__
    assert names | {"return"} <= written.keys()
    assert typing.Any not in written.values()


@pytest.mark.parametrize("name", sorted(onnxprune.__all__))
def test_name_is_documented(name):
    thing = getattr(onnxprune, name)
    text = inspect.getdoc(thing) or ""
    assert len(text.splitlines()[0]) > 15
    if inspect.isfunction(thing):
        for parameter in inspect.signature(thing).parameters.values():
            if len(inspect.signature(thing).parameters) > 2 and parameter.kind != parameter.VAR_KEYWORD:
                assert f"{parameter.name}:" in text or f"{parameter.name}`" in text, parameter.name


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'purne'"):
        _ = onnxprune.purne
