"""Where the models come from: exports of torchvision's networks with random weights, and a small Llama."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from against_torch_pruning import other_side
from rows import ROOT


def source_of(name: str, folder: Path) -> Path:
    """Return the file of a model with random weights: ``NAME.onnx``, or ``full_NAME.ts.onnx`` if there."""
    earlier = folder / f"full_{name}.ts.onnx"
    return earlier if earlier.exists() else folder / f"{name}.onnx"


def make_missing(names: Iterable[str], folder: Path, python: Path) -> None:
    """Export the models that are not there yet.

    Args:
        names: of torchvision's networks, or ``llama``.
        folder: where they are kept.
        python: of an environment with torch and torchvision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = source_of(name, folder)
        if path.exists():
            continue
        print(f"exporting {name}", file=sys.stderr, flush=True)
        if name == "llama":
            path.write_bytes(llama())
        else:
            other_side(python, "export", name, path)


def llama() -> bytes:
    """Return a decoder as Llama's: two layers of width 512, 8 heads (4 for keys), 1376 hidden units."""
    sys.path.insert(0, str(ROOT / "tests"))
    import architectures
    from architectures.sequences import RotaryDecoder

    _, inputs, axes = architectures.ARCHITECTURES["rotary_decoder"]()
    architectures.ARCHITECTURES["llama"] = lambda: (RotaryDecoder(512, 8, 4, 1376), inputs, axes)
    return architectures.export("llama", "ts")
