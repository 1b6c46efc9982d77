"""Both samples, one table: networks trained on the spot, and a model that nobody here trained.

python demo.py [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from compare import Row, print_table

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run every sample in a process of its own and print their rows together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("demo-output"), help="folder to write to")
    options = parser.parse_args()

    rows = []
    for sample in ("digits", "text-direction"):
        folder = options.out / sample
        folder.mkdir(parents=True, exist_ok=True)
        results = folder / "rows.json"
        print(f"--- {sample} ---", flush=True)
        script = HERE / sample / "run.py"
        done = subprocess.run(
            [sys.executable, str(script), "--out", str(folder), "--json", str(results)], check=False
        )
        if done.returncode:
            raise SystemExit(f"error: the {sample} sample failed with exit status {done.returncode}")
        rows += [Row(**row) for row in json.loads(results.read_text())]
    print_table(rows, "onnxprune: before and after")


if __name__ == "__main__":
    main()
