from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.registry import Registry, did_you_mean


@pytest.fixture
def colors() -> Registry[int]:
    registry: Registry[int] = Registry("color")
    registry.register("red")(1)
    registry.register("blue", "azure")(2)
    return registry


def test_entries_are_found_under_every_name(colors):
    assert (colors.get("red"), colors.get("blue"), colors.get("azure")) == (1, 2, 2)


def test_names_come_in_the_order_of_registration(colors):
    assert list(colors) == ["red", "blue", "azure"]
    assert "red" in colors
    assert "green" not in colors


def test_unknown_name_lists_what_is_known_and_the_closest(colors):
    with pytest.raises(
        UsageError, match=r"^unknown color 'blu' \(did you mean 'blue'\?\); known: red, blue, azure$"
    ):
        colors.get("blu")


def test_nothing_is_suggested_for_what_is_far_off(colors):
    with pytest.raises(UsageError) as raised:
        colors.get("xyz")
    assert "did you mean" not in str(raised.value)


def test_a_name_can_be_taken_once_only(colors):
    with pytest.raises(ValueError, match="color 'red' is registered twice"):
        colors.register("red")(3)
    assert colors.get("red") == 1


def test_register_returns_what_it_files():
    @Registry("thing").register("f")
    def f() -> int:
        return 7

    assert f() == 7


def test_did_you_mean_is_empty_without_a_close_match():
    assert did_you_mean("actvation", ["activation"]) == " (did you mean 'activation'?)"
    assert did_you_mean("xyz", ["l1", "l2"]) == ""
