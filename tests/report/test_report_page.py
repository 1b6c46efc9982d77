"""The page of a run, opened in headless Chromium: nothing is blocked or fetched, and it fits its window.

With ``ONNXPRUNE_SCREENSHOTS`` set to a folder, every page that is opened is kept there as a picture, to be
looked at: whether a page reads well is nothing that a test can tell.
"""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import records

from onnxprune.report.html import html

playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

RECORDS = {
    "passing": records.passing_record,
    "failing": records.failing_record,
    "unclear": records.unclear_record,
    "hostile": records.hostile_record,
    "bare": records.bare_record,
    "large": records.large_record,
}
WINDOWS = {"wide": (1280, 900), "narrow": (360, 740)}

pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium is installed here")
    with playwright.sync_playwright() as driver:
        # A sandbox of its own needs rights that containers lack; the only pages are our own files.
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, make in RECORDS.items():
        (folder / f"{name}.html").write_text(html(make()), encoding="utf-8")
    return folder


class Opened:
    """A page in a window, and all that it complained about or asked for."""

    def __init__(self, browser, file: Path, window: str, scheme: str) -> None:
        width, height = WINDOWS[window]
        viewport = {"width": width, "height": height}
        self.page = browser.new_page(viewport=viewport, color_scheme=scheme)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = file.as_uri()
        self.page.goto(self.url)
        self._keep(f"{file.stem}-{window}-{scheme}")

    def _keep(self, name: str) -> None:
        folder = os.environ.get("ONNXPRUNE_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)

    def says(self, script: str):
        return self.page.evaluate(script)

    def colour(self, selector: str, what: str = "color") -> str:
        return self.says(f"getComputedStyle(document.querySelector({selector!r})).{what}")


@pytest.fixture
def show(browser, pages):
    opened = []

    def open_page(name, window="wide", scheme="light"):
        opened.append(Opened(browser, pages / f"{name}.html", window, scheme))
        return opened[-1]

    yield open_page
    for entry in opened:
        entry.page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", ["passing", "failing", "unclear", "hostile", "bare"])
def test_it_opens_quietly_and_fits(show, name, window, scheme):
    opened = show(name, window, scheme)
    assert opened.complaints == []  # violations of the policy are told on the console
    assert opened.requests == [opened.url]
    assert opened.says("document.scrollingElement.scrollWidth <= innerWidth")
    assert opened.says("document.querySelector('h1').getBoundingClientRect().top < innerHeight")
    assert opened.says("document.querySelectorAll('script, img, iframe, link').length") == 0


@pytest.mark.long
@pytest.mark.parametrize("window", WINDOWS)
def test_a_large_network_fits_too_with_all_folds_open(show, window):
    opened = show("large", window)
    opened.says("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert opened.complaints == []
    assert opened.says("document.scrollingElement.scrollWidth <= innerWidth")
    bars = opened.says("document.querySelector('.bars').getBoundingClientRect().width")
    assert bars >= 300  # a pixel for each layer, inside a frame that scrolls where that is more than it has
    assert opened.says("document.querySelectorAll('#network tbody tr').length") == 300


def test_its_own_style_is_in_force(show):
    """Where the digest in the policy is wrong, the page is unstyled, and the console says so."""
    opened = show("passing")
    assert opened.says("document.styleSheets[0].cssRules.length") > 50
    assert opened.colour(".banner", "borderTopStyle") == "solid"


def test_a_style_that_was_changed_is_refused(browser, pages, tmp_path):
    """The test above can fail: one changed byte breaks the digest."""
    text = (pages / "passing.html").read_text(encoding="utf-8")
    file = tmp_path / "changed.html"
    file.write_text(text.replace("border-radius: 10px", "border-radius: 11px", 1), encoding="utf-8")
    opened = Opened(browser, file, "wide", "light")
    assert any("Content Security Policy" in complaint for complaint in opened.complaints)
    assert opened.colour(".banner", "borderTopStyle") == "none"
    opened.page.close()


def test_the_policy_stops_what_would_run_or_load(browser, pages, tmp_path):
    text = (pages / "passing.html").read_text(encoding="utf-8")
    inserted = "<script>document.title = 'ran'</script><img src='a.png'><p style='color: red'>x</p>"
    (tmp_path / "a.png").write_bytes(b"")
    file = tmp_path / "inserted.html"
    file.write_text(text.replace("<main", f"{inserted}<main"), encoding="utf-8")
    opened = Opened(browser, file, "wide", "light")
    assert opened.page.title() != "ran"
    told = " ".join(opened.complaints)
    assert all(what in told for what in ("script", "image 'file:", "inline style"))
    opened.page.close()


def test_dark_and_light_differ_and_verdicts_have_their_colours(show):
    light, dark = show("passing"), show("passing", scheme="dark")
    for selector, what in (("body", "color"), ("body", "backgroundColor"), (".verdict", "color")):
        assert light.colour(selector, what) != dark.colour(selector, what)
    shades = {show(name).colour(".verdict") for name in ("passing", "failing", "unclear")}
    assert len(shades) == 3


def test_pictures_are_drawn(show):
    opened = show("passing")
    size = "(box => Math.max(box.width, box.height))(document.querySelector('{}').getBoundingClientRect())"
    for selector in (".bars rect.left", ".hill", ".point circle", ".curve.marked polyline", ".whisk.final"):
        assert opened.says(size.format(selector)) > 1, selector
    wide = "[...document.querySelectorAll('svg[role=img]')].map(svg => svg.getBoundingClientRect().width)"
    assert min(opened.says(wide)) > 200


def test_numbers_at_the_ends_of_curves_stand_apart(show):
    numbers = "document.querySelectorAll('svg[aria-labelledby^=curves] .number')"
    tops = show("passing").says(f"[...{numbers}].map(number => +number.getAttribute('y'))")
    assert len(tops) == 5
    assert all(after - before >= 12 for before, after in pairwise(tops))


def test_names_are_told_to_readers_of_screens(show):
    """The tree that such readers get: a heading with the verdict, sections, pictures with a name."""
    page = show("passing").page
    assert page.get_by_role("heading", level=1).inner_text().startswith("✓ Passed")
    for name in ("Gates", "What each stage gave", "Accuracy", "How to reproduce"):
        assert page.get_by_role("region", name=name, exact=True).count() == 1
    for name in (
        "Width of every layer",
        "Times of single runs",
        "Growth of cross entropy",
        "top1 against time",
    ):
        assert page.get_by_role("img", name=name).count() == 1


def test_the_keyboard_reaches_what_it_needs(show):
    page = show("passing").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    box = page.evaluate("document.activeElement.getBoundingClientRect().left")
    assert box >= 0  # it is hidden until then


def test_paper_gets_all_that_is_folded(show):
    opened = show("passing")
    if not opened.says("CSS.supports('selector(::details-content)')"):
        pytest.skip("this browser has no way to unfold on paper")
    inner = "document.querySelector('#stages details table').getBoundingClientRect().height"
    hidden = opened.says("document.querySelector('#stages details').open")
    assert hidden is False
    assert opened.says("document.querySelector('#stages details table').checkVisibility()") is False
    opened.page.emulate_media(media="print")
    assert opened.says("document.querySelector('#stages details table').checkVisibility()") is True
    assert opened.says(inner) > 20
    assert opened.colour("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert opened.colour("nav", "display") == "none"
