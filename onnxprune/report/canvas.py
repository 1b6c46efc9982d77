"""What all pictures share: the file they become, the style of their lines, and a text for who can't see them.

Static, so that they show wherever pictures do. Names come from model files, so nothing in them is read as
markup.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from onnxprune.errors import MissingExtra, UsageError
from onnxprune.messages import visible
from onnxprune.model.atomic import check_target, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Formats by ending.
_FORMATS = {".svg": "svg", ".png": "png", ".pdf": "pdf"}

STYLE: Any = {
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "onnxprune",  # the same figures give the same file
    "font.size": 8.0,
    "figure.dpi": 72.0,  # a pixel is a point, until a figure is written
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.family": "sans-serif",
}
INK, FAINT, COLOUR = "#333333", "#d9d9d9", "#1f6feb"

#: How formats keep a title and a description; in SVG they are elements, which readers of screens look for.
_TOLD = {"png": ("Title", "Description"), "pdf": ("Title", "Subject")}

_LONGEST_DESCRIPTION = 10_000


def check_plot(path: Path) -> None:
    """Refuse a picture that can't be drawn, before long work.

    Raises:
        UsageError: the ending is none of .svg, .png and .pdf.
        OutputError: the file can't be written there.
        MissingExtra: matplotlib is not installed.
    """
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"{visible(path)}: a plot ends in .svg, .png or .pdf")
    check_target(path)
    try:
        import matplotlib as _  # noqa: F401
    except ImportError:
        raise MissingExtra("a plot needs matplotlib: pip install onnxprune[report]") from None


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, to be drawn with `STYLE` in force."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Figure, path: Path, *, title: str = "", description: str = "") -> None:
    """Write a figure whole or not at all.

    Args:
        figure: what was drawn.
        path: the file; its ending says the format.
        title: what the picture shows, in a few words, for readers that do not show pictures.
        description: what is to be seen in it, in sentences.

    Raises:
        OutputError: it can't be written.
    """
    kind = _FORMATS[path.suffix.lower()]
    stream = io.BytesIO()
    undated = {"svg": "Date", "pdf": "CreationDate"}  # the same figures give the same file
    metadata: dict[str, str | None] = {undated[kind]: None} if kind in undated else {}
    texts = visible(title), visible(description, _LONGEST_DESCRIPTION)
    metadata |= {key: text for key, text in zip(_TOLD.get(kind, ()), texts, strict=False) if text}
    figure.savefig(stream, format=kind, dpi=150, metadata=metadata)
    contents = stream.getvalue()
    if kind == "svg" and any(texts):
        contents = _told(contents.decode(), *texts).encode()
    write_whole(path, contents)


def _told(svg: str, title: str, description: str) -> str:
    """Return an SVG with a title and a description in the places where readers of screens look for them."""
    attributes = ' role="img" aria-labelledby="title description"'
    said = f'<title id="title">{escape(title)}</title>\n <desc id="description">{escape(description)}</desc>'
    return re.sub(r"<svg\b([^>]*)>", lambda tag: f"<svg{tag[1]}{attributes}>\n {said}", svg, count=1)
