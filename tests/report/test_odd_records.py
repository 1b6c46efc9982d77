"""Records whose figures are as odd as JSON lets them be: every form is drawn all the same."""

from __future__ import annotations

import json
import random
from typing import Any
from xml.etree import ElementTree

import pytest
import records

from onnxprune.record import Record
from onnxprune.report.html import html
from onnxprune.report.junit import junit
from onnxprune.report.markdown import MOST_CHARACTERS, markdown

ODD_FLOATS = (0.0, -0.0, -1.0, 1e308, -1e308, 5e-324, 1e-9, 1.0)
ODD_INTEGERS = (0, 1, -1, 2**63, 10**30)
ODD_TEXTS = ("", " ", "\n", "a" * 5000, "2026-99-99", "\ufffe\u2028")


def made_odd(value: Any, chance: random.Random) -> Any:
    """Return a JSON value in which some leaves are odd, and some lists empty or short."""
    if isinstance(value, dict):
        kept = ("verdict", "kind", "schema", "cost_of")
        return {key: entry if key in kept else made_odd(entry, chance) for key, entry in value.items()}
    if isinstance(value, list):
        return [made_odd(entry, chance) for entry in value][: chance.choice((0, 1, 2, None, None, None))]
    if isinstance(value, bool) or value is None or chance.random() < 0.6:
        return value
    odd: tuple[Any, ...] = ODD_TEXTS
    if isinstance(value, (int, float)):
        odd = ODD_FLOATS if isinstance(value, float) else ODD_INTEGERS
    return chance.choice(odd)


@pytest.mark.parametrize("seed", range(40))
def test_every_form_is_drawn(seed):
    chance = random.Random(seed)  # noqa: S311 # no secret
    document = json.loads(records.failing_record().to_text())
    record = Record.model_validate(made_odd(document, chance))
    page = html(record)
    assert page.endswith("</html>\n")
    assert "NaN" not in page
    assert len(markdown(record)) <= MOST_CHARACTERS
    ElementTree.fromstring(junit(record))
