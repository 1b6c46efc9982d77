"""The colours of the page: text and marks stand out from what is behind them, in light, dark and print."""

from __future__ import annotations

import re
from importlib import resources

import pytest

STYLE = resources.files("onnxprune.report.page").joinpath("page.css").read_text(encoding="utf-8")

#: Contrast that WCAG 2.2 asks of text (1.4.3) and of what one has to see in pictures (1.4.11), level AA.
TEXT, MARKS = 4.5, 3.0

PAIRS = [
    *((ink, page, TEXT) for ink in ("ink", "soft", "link") for page in ("page", "panel")),
    *((verdict, f"{verdict}-page", TEXT) for verdict in ("pass", "fail", "unclear")),
    *(("ink", f"{verdict}-page", TEXT) for verdict in ("pass", "fail", "unclear")),
    *((verdict, "panel", MARKS) for verdict in ("pass", "fail", "unclear", "left", "was", "focus")),
    ("panel", "left", TEXT),  # the number in the chosen point
]


def palettes() -> dict[str, dict[str, str]]:
    """Return the colours by name, of each scheme; what a scheme does not say, it has from the light one."""
    found = {}
    for name, start in (
        ("light", 0),
        ("dark", STYLE.index("prefers-color-scheme: dark")),
        ("print", STYLE.index("@media print")),
    ):
        block = STYLE[STYLE.index(":root {", start) :]
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[: block.index("}")]))
        found[name] = {**found.get("light", {}), **colours}
    return found


def luminance(colour: str) -> float:
    """Return the relative luminance of a colour, as WCAG 2 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Return the ratio of the luminances of two colours, at least 1."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_formula_gives_the_ends_of_its_range():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#777777") == 1


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
@pytest.mark.parametrize(("front", "behind", "least"), PAIRS)
def test_contrast(scheme, front, behind, least):
    colours = palettes()[scheme]
    assert contrast(colours[front], colours[behind]) >= least


def test_dark_is_another_palette():
    schemes = palettes()
    assert all(schemes["dark"][name] != colour for name, colour in schemes["light"].items())
