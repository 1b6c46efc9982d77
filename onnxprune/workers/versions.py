"""What has to be the same on two machines for the same task to give the same result."""

from __future__ import annotations

import functools
import hashlib
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

_PACKAGES = ("onnxruntime", "onnx", "onnx-ir", "numpy", "scipy", "distributed")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what computes here, by name; that of onnxprune counts its sources."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[1]
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    found = {
        "onnxprune": f"{metadata.version('onnxprune')} ({digest.hexdigest()[:8]})",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "system": platform.system(),
    }
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "missing"
    return found


def difference(there: Mapping[str, str]) -> str | None:
    """Return what another machine has that is not what there is here, in one line; None if nothing is."""
    lines = [
        f"{name} {there.get(name, 'missing')} (here {version})"
        for name, version in versions().items()
        if there.get(name) != version
    ]
    return ", ".join(lines) or None
