"""Fetch a text-direction classifier that nobody here trained: it lies in a package on PyPI.

python fetch.py --out FOLDER

The package itself needs OpenCV and an older Python; all we want is the model, so the wheel is downloaded and
one file is taken out of it.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "rapidocr-onnxruntime==1.4.4"
WHEEL = "rapidocr_onnxruntime-1.4.4-py3-none-any.whl"
MEMBER = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
SHA256 = "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c"


def download_wheel(folder: Path) -> Path:
    """Have pip put the wheel into ``folder``, unless it is there."""
    wheel = folder / WHEEL
    if not wheel.exists():
        # for another Python than ours: nothing is installed, so the package's limits do not matter
        wanted = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", f"--dest={folder}", PACKAGE]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *wanted], stdout=sys.stderr, check=False
        )
        if done.returncode or not wheel.exists():
            raise SystemExit(f"error: pip could not download {PACKAGE}; put {WHEEL} into {folder} by hand")
    return wheel


def fetch_model(folder: Path) -> Path:
    """Return the model's path in ``folder``, downloaded if need be, its digest checked."""
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "text-direction.onnx"
    if not model.exists():
        with zipfile.ZipFile(download_wheel(folder)) as archive:
            content = archive.read(MEMBER)
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise SystemExit(
                f"error: {MEMBER} in {folder / WHEEL} is not the file that this sample was written for"
            )
        model.write_bytes(content)
    return model


def main() -> None:
    """Fetch the model and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("text-direction-output"), help="folder to write to")
    print(fetch_model(parser.parse_args().out))


if __name__ == "__main__":
    main()
