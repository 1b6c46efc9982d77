"""How large the page of a run is, and how long a browser takes to open it.

    python benchmarks/report_page.py [--layers 300] [--rounds 5]

The record is that of `tests/records.py`: every layer with a curve, every part as long as it gets. Each round
opens the page in a headless Chromium that is installed on the system, and asks it for the time from the start
of the navigation to the end of its load event, and to the first paint of text.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

TIMES = """() => ({
  loaded: performance.getEntriesByType('navigation')[0].loadEventEnd,
  painted: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN,
  elements: document.querySelectorAll('*').length,
})"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--layers", type=int, default=300)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()

    import records

    from onnxprune.report.html import html

    record = records.large_record(chosen.layers)
    started = time.perf_counter()
    page = html(record)
    seconds = time.perf_counter() - started
    print(f"{chosen.layers} layers: {len(page.encode()) / 1e6:.2f} MB, drawn in {seconds:.2f} s")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium is installed here: the page was not opened")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "report.html"
        file.write_text(page, encoding="utf-8")
        for name, width in (("wide", 1280), ("narrow", 360)):
            rounds = [open_once(browser, file, width) for _ in range(chosen.rounds)]
            figures = {key: statistics.median(found[key] for found in rounds) for key in rounds[0]}
            print(
                f"{name} ({width} px): loaded after {figures['loaded']:.0f} ms, first paint after "
                f"{figures['painted']:.0f} ms, {figures['elements']:.0f} elements (median of {chosen.rounds})"
            )


def open_once(browser: str, file: Path, width: int) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = started.new_page(viewport={"width": width, "height": 900})
        page.goto(file.as_uri())
        page.wait_for_timeout(300)  # the paint is told after the load event
        found: dict[str, float] = page.evaluate(TIMES)
        started.close()
    return found


if __name__ == "__main__":
    main()
