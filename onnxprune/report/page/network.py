"""The network as a picture: a bar for each layer, as high as it is wide, before and after."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from onnxprune.record import LayerRecord
from onnxprune.report.figures import count_text
from onnxprune.report.page.svg import add, markup, ornament, picture

_HEIGHT = 100.0

#: Share of the room of a layer that its bar takes; where there are many, gaps would be all that is seen.
_BAR, _BAR_OF_MANY = 0.86, 1.0
_MANY = 100

#: Pixels that a layer gets at least: a network deeper than a screen is wide scrolls inside its frame.
_LEAST_PIXELS = 1

_ROW_WIDTH, _ROW_HEIGHT = 120.0, 10.0


def width_picture(layers: Sequence[LayerRecord]) -> Markup:
    """Return the output channels of every layer, before and after, in the order in which they run."""
    return _bars("network-width", "Width of every layer, before and after", "channels", layers, [
        (layer.width, layer.width_left) for layer in layers
    ])  # fmt: skip


def macs_picture(layers: Sequence[LayerRecord]) -> Markup:
    """Return the multiply-accumulates of every layer, before and after."""
    return _bars("network-macs", "MACs of every layer, before and after", "MACs", layers, [
        (layer.macs, layer.macs_left) for layer in layers
    ])  # fmt: skip


def _bars(
    key: str, title: str, unit: str, layers: Sequence[LayerRecord], sizes: Sequence[tuple[int, int]]
) -> Markup:
    before, after = (sum(size[which] for size in sizes) for which in (0, 1))
    gone = sum(not layer.width_left for layer in layers)
    told = f"{len(layers)} layers from input to output: {count_text(before)} {unit} before, "
    told += f"{count_text(after)} after; {gone} layers are gone." if gone else f"{count_text(after)} after."
    root = picture(key, title, f"{told} The table of layers has every figure.", len(layers), _HEIGHT, "bars")
    root.set("preserveAspectRatio", "none")
    root.set("width", str(_LEAST_PIXELS * len(layers)))
    thickness = _BAR if len(layers) <= _MANY else _BAR_OF_MANY
    top = max((max(size) for size in sizes), default=1) or 1
    for place, (layer, (was, left)) in enumerate(zip(layers, sizes, strict=True)):
        bar = add(root, "g")
        state = f"{was:,} → {left:,} {unit}" if left else f"{was:,} {unit}, gone"
        add(bar, "title", text=f"{place + 1}. {layer.name}: {state}")
        for class_, size in (("was", was), ("left", left)):
            height = _HEIGHT * size / top
            if height:
                add(bar, "rect", class_, x=float(place), y=_HEIGHT - height, width=thickness, height=height)
    return markup(root)


def row_bar(layer: LayerRecord, widest: int) -> Markup:
    """Return the bar of one layer, lying, for its row of the table."""
    root = ornament(_ROW_WIDTH, _ROW_HEIGHT, "row-bar")
    for class_, size in (("was", layer.width), ("left", layer.width_left)):
        if size:
            add(root, "rect", class_, x=0.0, y=0.0, width=_ROW_WIDTH * size / widest, height=_ROW_HEIGHT)
    return markup(root)
