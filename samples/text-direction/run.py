"""Fetch a text-direction classifier, render text lines, prune the model and see whether it is still right.

python run.py [--out FOLDER] [--target-macs 0.9]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compare import compare, finish
from fetch import fetch_model
from lines import write_data


def main() -> None:
    """Run the job and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("text-direction-output"), help="folder to write to")
    parser.add_argument("--target-macs", type=float, default=0.9, help="share of the MACs that stays")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args()

    model = fetch_model(options.out)
    if not (options.out / "eval.npz").exists():
        write_data(options.out)
    ways = {
        f"channels, {options.target_macs:.0%} of MACs": {"target_macs": options.target_macs},
        "2:4": {"pattern": "2:4"},
    }
    rows = compare(model, options.out / "eval.npz", options.out, ways)
    finish(rows, "Text direction: upright or upside down", options.json)


if __name__ == "__main__":
    main()
