"""The JUnit XML of a run: what build servers count, and that nothing in it breaks the XML."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
import records

from onnxprune.report.junit import junit

#: Children of each element in the order that the schemas of Jenkins and of Ant's JUnit task want.
CHILDREN = {
    "testsuites": ("testsuite",),
    "testsuite": ("properties", "testcase", "system-out", "system-err"),
    "properties": ("property",),
    "testcase": ("skipped", "error", "failure", "system-out", "system-err"),
    "property": (),
    "failure": (),
    "system-out": (),
}

#: Attributes by element: those that have to be there, and those that may be.
ATTRIBUTES = {
    "testsuites": ({"name", "tests", "failures", "errors", "time"}, set()),
    "testsuite": ({"name", "tests", "failures", "errors", "skipped", "time"}, {"timestamp"}),
    "properties": (set(), set()),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "classname", "time"}, set()),
    "failure": ({"message", "type"}, set()),
    "system-out": (set(), set()),
}

MAKERS = [
    records.passing_record, records.failing_record, records.unclear_record, records.hostile_record,
    records.bare_record, records.large_record,
]  # fmt: skip


def problems(element: ElementTree.Element) -> list[str]:
    """Return what the common schema of JUnit reports would not take."""
    found = []
    order = CHILDREN[element.tag]
    tags = [child.tag for child in element]
    if not set(tags) <= set(order) or tags != sorted(tags, key=order.index):
        found.append(f"{element.tag} holds {tags}")
    needed, allowed = ATTRIBUTES[element.tag]
    if not needed <= set(element.attrib) <= needed | allowed:
        found.append(f"{element.tag} has {sorted(element.attrib)}")
    stamp = element.get("timestamp", "2026-01-01T00:00:00")
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", stamp):
        found.append(f"the time {stamp}")
    return found + [line for child in element if child.tag in CHILDREN for line in problems(child)]


def suites(make) -> dict[str, ElementTree.Element]:
    return {suite.get("name", ""): suite for suite in ElementTree.fromstring(junit(make()))}


def outcome(suite: ElementTree.Element, name: str) -> str:
    case = next(case for case in suite.iter("testcase") if case.get("name") == name)
    failure = case.find("failure")
    return "passed" if failure is None else str(failure.get("type"))


@pytest.mark.parametrize("make", MAKERS)
def test_it_keeps_to_the_schema(make):
    text = junit(make())
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites ')
    assert problems(ElementTree.fromstring(text)) == []


def test_the_schema_check_sees_what_is_wrong():
    wrong = '<testsuites name="n" tests="1" failures="0" errors="0"><testcase/></testsuites>'
    assert len(problems(ElementTree.fromstring(wrong))) == 3


@pytest.mark.parametrize("make", MAKERS)
def test_counts_are_those_of_the_cases(make):
    root = ElementTree.fromstring(junit(make()))
    for holder in (root, *root.iter("testsuite")):
        assert holder.get("tests") == str(len(list(holder.iter("testcase"))))
        assert holder.get("failures") == str(len(list(holder.iter("failure"))))
    assert int(root.get("tests", "0")) >= 1


def test_every_gate_and_check_is_a_case():
    record = records.failing_record()
    found = suites(records.failing_record)
    assert list(found) == ["verdict", "gates", "checks", "stage prune", "stage quantize"]
    assert [case.get("name") for case in found["gates"].iter("testcase")] == [g.name for g in record.gates]
    assert outcome(found["gates"], "accuracy_drop") == "fail"
    assert outcome(found["gates"], "size_ratio") == "passed"
    assert outcome(found["checks"], "zeros kept") == "fail"
    assert outcome(found["stage quantize"], "zeros kept") == "passed"
    assert outcome(found["verdict"], "the run") == "fail"
    failure = found["gates"].find(".//failure")
    assert "top1 fell by 0.0037" in failure.get("message")
    assert "asked: at most 0.001 below the original" in failure.text


def test_inconclusive_is_neither_passed_nor_skipped():
    found = suites(records.unclear_record)
    assert outcome(found["gates"], "accuracy_drop") == "inconclusive"
    assert outcome(found["verdict"], "the run") == "inconclusive"
    assert not list(found["gates"].iter("skipped"))
    assert "3,400 samples would decide" in found["gates"].find(".//failure").get("message")


def test_a_run_without_gates_is_not_empty():
    found = suites(records.bare_record)
    assert list(found) == ["verdict"]
    assert outcome(found["verdict"], "the run") == "passed"


def test_what_xml_forbids_is_made_visible():
    text = junit(records.hostile_record())
    assert not re.search("[\x00-\x08\x0b-\x1f\ufffe\uffff\ud800-\udfff]", text)
    names = {case.get("name") for case in ElementTree.fromstring(text).iter("testcase")}
    assert "\\x1b[31mred\\x07\\x00\\x0b" in names
    assert "<script>alert(1)</script>" in names
    lone = records.bare_record().model_copy(update={"title": "a\ud800\ufffe"})
    assert 'value="a\\ud800\\ufffe"' in junit(lone)


def test_times_are_told_without_a_zone_or_not_at_all():
    record = records.passing_record().model_copy(update={"started": "2026-03-14T10:12:03+01:00"})
    assert 'timestamp="2026-03-14T09:12:03"' in junit(record)
    assert "timestamp" not in junit(record.model_copy(update={"started": "yesterday"}))


def test_properties_say_what_was_run_and_made():
    record = records.passing_record()
    properties = {
        entry.get("name"): entry.get("value") for entry in suites(lambda: record)["verdict"].iter("property")
    }
    assert properties["onnxprune"] == "0.1.0"
    assert properties["recipe sha256"] == record.recipe.sha256
    assert properties["sha256 of quantize"] == record.models[-1].sha256
    assert properties["hardware: memory_bytes"] == "15.6 GiB"
