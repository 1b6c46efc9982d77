"""The page of a run, read as text: what it holds, what it does not let through, how large it gets."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import records

from onnxprune.report.html import html

RECORDS = {
    "passing": records.passing_record,
    "failing": records.failing_record,
    "unclear": records.unclear_record,
    "hostile": records.hostile_record,
    "bare": records.bare_record,
}

#: Elements without an end tag.
VOID = {"meta", "br", "hr", "img", "link", "input", "base"}

#: What the page is made of: anything else came from a record.
KNOWN = {
    "html", "head", "meta", "title", "style", "body", "a", "header", "p", "h1", "h2", "h3", "span", "nav",
    "ul", "li", "main", "dl", "div", "dt", "dd", "small", "section", "strong", "code", "table", "caption",
    "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary", "pre", "footer",
    "svg", "desc", "g", "rect", "line", "circle", "text", "path", "polyline",
}  # fmt: skip


class Page(HTMLParser):
    """Elements and texts of a page, and whether every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.misnested: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.misnested.append(tag)

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        self.misnested.append(f"<!--{data}-->")

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module", params=RECORDS, name="page")
def drawn(request):
    return Page(html(RECORDS[request.param]()))


def test_every_element_is_ours_and_closed(page):
    assert {tag for tag, _ in page.elements} <= KNOWN
    assert page.misnested == []
    assert page.open == []


def test_nothing_is_loaded_run_or_styled_from_attributes(page):
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("style", "src", "srcset") for name in attributes), (
            tag
        )
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in str(attributes.values())


def test_ids_are_unique_and_references_are_kept(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        targets = (attributes.get("aria-labelledby") or "").split()
        targets += [attributes["href"][1:]] if "href" in attributes else []
        assert set(targets) <= set(ids)


def test_headings_are_in_order(page):
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_pictures_have_texts(page):
    for tag, attributes in page.elements:
        if tag == "svg":
            announced = attributes.get("role") == "img" and attributes.get("aria-labelledby")
            assert announced or attributes.get("aria-hidden") == "true"


def test_the_policy_allows_the_one_style_and_nothing_else():
    text = html(records.passing_record())
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    allowed = dict(directive.strip().split(" ", 1) for directive in policy.split(";"))
    assert allowed.pop("style-src") == f"'sha256-{digest}'"
    assert allowed.pop("img-src") == "data:"
    assert set(allowed.values()) == {"'none'"}
    assert "default-src" in allowed
    assert text.index("Content-Security-Policy") < text.index("<style>")
    assert "@import" not in style
    assert "url(" not in style


def test_names_are_shown_to_the_letter_and_made_visible():
    text = html(records.hostile_record())
    shown = Page(text).text
    assert "<script" not in text
    assert "<script>alert(1)</script>" in shown
    assert "conv\\u202egnp.exe\\u2066/w" in shown
    assert "\\x1b[31mred\\x07\\x00\\x0b" in shown
    assert "{{ 7 * 7 }}{% for x in y %}" in shown
    assert "49" not in re.findall(r"\w+", shown)
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u200b-\u200f\u2028-\u202e\u2060-\u2069]", text)


def test_a_recipe_of_many_lines_keeps_them():
    record = records.passing_record()
    block = re.search(r"<pre><code>(\[model\].*?)</code></pre>", html(record), re.DOTALL)[1]
    assert block.count("\n") == len(record.recipe.text.splitlines()) - 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("passing", ["Passed", "4 of 4 gates hold", "The model is at small.onnx"]),
        (
            "failing",
            ["Failed", "3 of 4 gates hold", "it was kept aside at small.rejected.onnx", "12 of 3,752"],
        ),
        ("unclear", ["Inconclusive", "1 can't be decided", "about 3,400 samples would decide"]),
        ("bare", ["no gates were set", "Not in this record: gates, accuracy, latency"]),
    ],
)
def test_the_verdict_is_told_in_words(name, words):
    text = " ".join(Page(html(RECORDS[name]())).text.split())
    for word in words:
        assert word.lower() in text.lower()


def test_every_part_of_a_record_is_on_the_page():
    record = records.failing_record()
    shown = " ".join(Page(html(record)).text.split())
    for text in (
        *(gate.detail for gate in record.gates),
        *(check.detail for check in record.checks),
        *(layer.name for layer in record.layers),
        *(layer.reason for layer in record.layers if layer.reason),
        *(skip.reason for skip in record.skipped),
        *(file.sha256 for file in record.files),
        *(model.sha256 for model in record.models),
        *(subset.name for subset in record.accuracy.subsets),
        *record.commands,
        *record.environment.packages,
        *(point.name for point in record.pareto),
        "accepted/report.json",
        "faster",
        "48.2",
    ):
        assert text in shown, text


def test_a_large_network_stays_small_on_disk():
    record = records.large_record()
    page = html(record)
    assert len(page.encode()) < 3_000_000
    shown = Page(page).text
    for layer in record.layers:
        assert layer.name in shown


def test_of_many_segments_those_that_lost_most_stand_first():
    record = records.large_record()
    worst = min(record.accuracy.subsets[2:], key=lambda subset: subset.change.value)
    page = html(record)
    accuracy = page[page.index('<section id="accuracy"') :]
    first = Page(accuracy[: accuracy.index("<details>")]).text
    assert worst.name in first
    assert "region 5, camera 9" not in first
    assert "region 5, camera 9" in Page(accuracy).text


def test_the_same_record_gives_the_same_page():
    assert html(records.passing_record()) == html(records.passing_record())
