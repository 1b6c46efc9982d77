from __future__ import annotations

import pytest

from onnxprune.errors import UsageError
from onnxprune.importers import InputShape, parse_input_shape


@pytest.mark.parametrize(
    ("text", "name", "shape", "dtype"),
    [
        ("x=1,3,224,224", "x", (1, 3, 224, 224), None),
        ("1,3", None, (1, 3), None),
        ("tokens=1,128:int64", "tokens", (1, 128), "int64"),
        ("7", None, (7,), None),
    ],
)
def test_reads_what_users_write(
    text: str, name: str | None, shape: tuple[int, ...], dtype: str | None
) -> None:
    assert parse_input_shape(text) == (name, InputShape(shape, dtype))


@pytest.mark.parametrize("text", ["", "x=", "=1,2", "x=1,,2", "x=1x3", "x=1,2:", "a b=1", "x=1.5"])
def test_refuses_other_forms_and_shows_the_right_one(text: str) -> None:
    with pytest.raises(UsageError, match=r"x=1,3,224,224"):
        parse_input_shape(text)


def test_refuses_empty_axes() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        parse_input_shape("x=1,0,3")


def test_suggests_an_element_type() -> None:
    with pytest.raises(UsageError, match=r"did you mean 'int64'"):
        parse_input_shape("x=1:int46")
