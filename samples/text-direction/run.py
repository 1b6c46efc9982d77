"""Fetch a text-direction classifier, render text lines, prune the model and see whether it is still right.

python run.py [--out FOLDER] [--target-macs 0.9]
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

#: The early layers are narrow, and the squeeze-and-excitation blocks steer all others: they stay whole.
PROTECTED = ("conv[1-6]_*", "*_se_*")


def ways(target_macs: float) -> dict[str, dict[str, Any]]:
    """Return how to prune: what a network as lean as this one bears without repair."""
    return {
        f"channels, {target_macs:.0%} MACs": {"target_macs": target_macs, "protect": PROTECTED},
        "unstructured, 25%": {"pattern": "unstructured", "amount": 0.25, "scope": "global"},
    }


def main() -> None:
    """Run the job and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("text-direction-output"), help="folder to write to")
    parser.add_argument("--target-macs", type=float, default=0.9, help="share of the MACs that stays")
    parser.add_argument("--json", type=Path, help="write the rows to this file instead")
    options = parser.parse_args()

    model = fetch_model(options.out)
    if not (options.out / "eval.npz").exists():
        write_data(options.out)
    rows = compare(model, options.out / "eval.npz", options.out, ways(options.target_macs))
    finish(rows, "Text direction: upright or upside down", options.json)


if __name__ == "__main__":
    main()
