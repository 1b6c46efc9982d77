"""Fetch a text-direction classifier, render text lines, prune the model and see whether it is still right.

python run.py [--out FOLDER] [--target-macs 0.75]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compare import compare, finish
from fetch import fetch_model
from lines import write_data


def ways(target_macs: float, calibration: Path) -> dict[str, dict[str, Any]]:
    """Return how to prune: without data, and the same with a few hundred lines that nobody labelled."""
    channels: dict[str, Any] = {"target_macs": target_macs}
    zeros: dict[str, Any] = {"pattern": "unstructured", "amount": 0.5, "scope": "global"}
    return {
        f"{target_macs:.0%} MACs": channels,
        f"{target_macs:.0%} MACs, repaired": {
            **channels, "data": calibration, "recover": "reconstruct", "score": "l2",
        },
        "50% zeros": zeros,
        "50% zeros, obs": {**zeros, "data": calibration, "score": "obs"},
    }  # fmt: skip


def main() -> None:
    """Run the job and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("text-direction-output"), help="folder to write to")
    parser.add_argument("--target-macs", type=float, default=0.75, help="share of the MACs that stays")
    parser.add_argument("--json", type=Path, help="write the rows to this file instead")
    options = parser.parse_args()

    model = fetch_model(options.out)
    if not (options.out / "eval.npz").exists():
        write_data(options.out)
    wishes = ways(options.target_macs, options.out / "calibration.npz")
    rows = compare(model, options.out / "eval.npz", options.out, wishes)
    finish(rows, "Text direction: upright or upside down", options.json)


if __name__ == "__main__":
    main()
