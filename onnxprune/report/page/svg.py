"""SVG inside a page: elements, pictures with a text for who can't see them, and axes.

Colours, lines and fonts are classes of the page's style: a page under a strict content-security policy takes
no style from attributes. Texts may come from model files; building elements, not strings, is what escapes
them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

from onnxprune.messages import visible

Element = ElementTree.Element

_LONGEST_TEXT = 400

#: Of figures; a hyphen is narrower than a plus.
MINUS = "\u2212"


def add(parent: Element, tag: str, class_: str = "", text: str = "", **attributes: object) -> Element:
    """Add an element; numbers lose digits that nobody sees."""
    element = ElementTree.SubElement(parent, tag)
    if class_:
        element.set("class", class_)
    for name, value in attributes.items():
        element.set(name, _number(value) if isinstance(value, float) else str(value))
    if text:
        element.text = visible(text, _LONGEST_TEXT)
    return element


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def picture(key: str, title: str, description: str, width: float, height: float, class_: str) -> Element:
    """Return an empty picture that readers of screens announce by its title and description.

    Args:
        key: unique in the page; its elements are found by it.
        title: what it shows, in a few words.
        description: what is to be seen in it.
        width: in units of its own; one is a CSS pixel where the picture has its natural size.
        height: likewise.
        class_: of the page's style.
    """
    root = Element("svg", {"class": class_, "role": "img", "aria-labelledby": f"{key}-title {key}-text"})
    root.set("viewBox", f"0 0 {_number(width)} {_number(height)}")
    add(root, "title", text=title, id=f"{key}-title")
    add(root, "desc", text=description, id=f"{key}-text")
    return root


def ornament(width: float, height: float, class_: str) -> Element:
    """Return an empty picture that only repeats the figures beside it: readers of screens pass over it."""
    root = Element("svg", {"class": class_, "aria-hidden": "true", "focusable": "false"})
    root.set("viewBox", f"0 0 {_number(width)} {_number(height)}")
    root.set("width", _number(width))
    root.set("height", _number(height))
    return root


def markup(element: Element) -> Markup:
    """Return an element as text that the template takes as it is."""
    return Markup(ElementTree.tostring(element, encoding="unicode"))  # noqa: S704 (escaped by the serializer)


@dataclass(frozen=True, slots=True)
class Scale:
    """Figures from ``low`` to ``high`` along pixels from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, figure: float) -> float:
        """Return the pixel of a figure; what lies outside is drawn at the edge."""
        span = (self.high / 2 - self.low / 2) or 1.0  # halves: the whole may be no finite number
        share = min(max((figure / 2 - self.low / 2) / span, 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Return round figures within the scale; none where it is wider than numbers go."""
        if not math.isfinite(self.high - self.low):
            return []
        step = _round_step((self.high - self.low) / max(about, 1))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def fitted(figures: list[float], start: float, end: float, *, margin: float = 0.05) -> Scale:
    """Return a scale on which all figures have their place, with a margin beside them."""
    low, high = min(figures), max(figures)
    room = (high - low) * margin or abs(high) * 0.01 or 1.0
    return Scale(low - room, high + room, start, end)


def _round_step(least: float) -> float:
    """Return 1, 2 or 5 times a power of ten, at least ``least``."""
    if least <= 0 or not math.isfinite(least):
        return 1.0
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def tick_text(figure: float, step: float = 0.0) -> str:
    """Return a figure of an axis with the digits that its step needs."""
    if step:
        return f"{figure:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}".replace("-", MINUS)
    return f"{figure:.4g}".replace("-", MINUS)
