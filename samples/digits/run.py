"""Train (once), prune and compare both networks on handwritten digits.

python run.py [--out FOLDER] [--target-macs 0.5]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compare import compare, finish, ways_at

HERE = Path(__file__).resolve().parent
NETWORKS = ("residual", "vit")


def main() -> None:
    """Run the job and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("digits-output"), help="folder to write to")
    parser.add_argument("--target-macs", type=float, default=0.5, help="share of the MACs that stays")
    parser.add_argument("--json", type=Path, help="write the rows to this file instead")
    options = parser.parse_args()

    if not all((options.out / f"{name}.onnx").exists() for name in NETWORKS):
        print("training both networks; this takes about a minute", flush=True)
        subprocess.run([sys.executable, str(HERE / "train.py"), "--out", str(options.out)], check=True)
    ways = ways_at(options.target_macs, options.out / "calibration.npz")
    rows = [
        row
        for name in NETWORKS
        for row in compare(options.out / f"{name}.onnx", options.out / "eval.npz", options.out, ways)
    ]
    finish(rows, "Handwritten digits", options.json)


if __name__ == "__main__":
    main()
