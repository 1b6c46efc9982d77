"""Render text lines, half of them upside down, as the classifier wants them: float32 [n, 3, 48, 192].

python lines.py --out FOLDER
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

COUNT = 600
CALIBRATION = 384
HEIGHT, WIDTH = 48, 192
UPRIGHT, UPSIDE_DOWN = 0, 1  # the model's classes: 0 and 180 degrees

VOCABULARY = """
invoice total amount received street number order delivery station ticket platform departure arrival
market library garden kitchen window bridge river mountain village harbour museum theatre university
hospital engine battery voltage pressure temperature humidity please return before opening hours closed
Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April August October
December north south east west left right entrance exit danger caution fragile handle with care this side
up keep dry made in Europe organic coffee sugar butter bread cheese apple orange quality control
department office reference customer account payment
"""
WORDS = VOCABULARY.split()


def random_text(rng: random.Random) -> tuple[str, str]:
    """Return a line and its segment: words, or numbers as on receipts and labels."""
    if rng.random() < 0.5:
        words = [rng.choice(WORDS) for _ in range(rng.randint(1, 3))]
        styled = rng.choice((str.lower, str.title, str.upper))
        return styled(" ".join(words)), "words"
    number = f"{rng.randint(10, 99)}-{rng.randint(2347, 7452)}"
    price = f"{rng.randint(12, 754)}.{rng.randint(12, 75)} EUR"
    date = f"{rng.randint(12, 27)}.{rng.randint(2, 7)}.20{rng.randint(21, 27)}"
    return rng.choice((f"No. {number}", price, date, f"{date} {price}")), "numbers"


def render(text: str, rng: random.Random) -> Image.Image:
    """Draw dark text on a light ground or the other way round, slightly blurred, cropped to the line."""
    font = ImageFont.load_default(size=rng.randint(18, 44))
    left, top, right, bottom = font.getbbox(text)
    margin = rng.randint(2, 8)
    size = (math.ceil(right - left) + 2 * margin, math.ceil(bottom - top) + 2 * margin)
    ground, ink = rng.randint(170, 255), rng.randint(0, 90)
    if rng.random() < 0.25:
        ground, ink = ink, ground
    tint = [rng.randint(-15, 15) for _ in range(3)]
    colours = [tuple(min(255, max(0, level + shift)) for shift in tint) for level in (ground, ink)]
    image = Image.new("RGB", size, colours[0])
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=colours[1])
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.8)))


def preprocess(image: Image.Image) -> npt.NDArray[np.float32]:
    """Scale to 48 pixels in height and at most 192 in width, pad on the right, map [0, 255] to [-1, 1]."""
    width = min(WIDTH, math.ceil(HEIGHT * image.width / image.height))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), dtype=np.float32)
    blue_green_red = pixels[:, :, ::-1].transpose(2, 0, 1)
    padded = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    padded[:, :, :width] = (blue_green_red / 255 - 0.5) / 0.5
    return padded


def write_data(folder: Path, seed: int = 0, count: int = COUNT) -> None:
    """Write ``eval.npz`` (with labels and segments) and ``calibration.npz`` (other lines, without)."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    images, labels, segments = [], [], []
    for index in range(count + CALIBRATION):
        text, segment = random_text(rng)
        image = render(text, rng)
        label = (UPRIGHT, UPSIDE_DOWN)[index % 2]
        images.append(preprocess(image.rotate(180) if label == UPSIDE_DOWN else image))
        labels.append(label)
        segments.append(segment)
    stacked = np.stack(images)
    np.savez_compressed(
        folder / "eval.npz",
        x=stacked[:count],
        label=np.array(labels[:count], dtype=np.int64),
        segment=np.array(segments[:count]),
    )
    np.savez_compressed(folder / "calibration.npz", x=stacked[count:])


def main() -> None:
    """Write the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("text-direction-output"), help="folder to write to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=COUNT, help="lines to evaluate on")
    options = parser.parse_args()
    write_data(options.out, options.seed, options.count)


if __name__ == "__main__":
    main()
