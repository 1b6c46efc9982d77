"""One run -> JUnit XML, which build servers show beside the results of tests.

A test is either passed, failed or skipped there, and a skipped one leaves a build green. So a gate that can't
be decided counts as failed, of the type ``inconclusive``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from onnxprune.messages import visible
from onnxprune.record import CheckRecord, GateRecord, Record
from onnxprune.report.figures import VERDICTS, figure_text, gain_line, measured_text, moment_of, verdict_line

_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class _Case:
    """One test case; ``failure`` is its type and a line, or None."""

    name: str
    told: str
    failure: tuple[str, str] | None


def junit(record: Record) -> str:
    """Return the gates and checks of a run as test cases, in one suite for each of their kinds.

    The suites are ``verdict`` (so that a run without gates is not empty), ``gates``, ``checks``, and one for
    each stage that checked something.
    """
    root = ElementTree.Element("testsuites")
    _suite(root, record, "verdict", [_verdict(record)], _properties(record))
    _suite(root, record, "gates", [_gate(gate) for gate in record.gates])
    _suite(root, record, "checks", _checks(record.checks))
    for stage in record.stages:
        _suite(root, record, f"stage {stage.name}", _checks(stage.checks), seconds=stage.seconds)
    cases = root.findall("testsuite/testcase")
    root.set("name", "onnxprune")
    root.set("tests", str(len(cases)))
    root.set("failures", str(len(root.findall("testsuite/testcase/failure"))))
    root.set("errors", "0")
    root.set("time", _time(sum(stage.seconds for stage in record.stages)))
    ElementTree.indent(root)
    declaration = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{declaration}{ElementTree.tostring(root, encoding='unicode')}\n"


def _suite(
    root: ElementTree.Element,
    record: Record,
    name: str,
    cases: Sequence[_Case],
    properties: Iterable[tuple[str, str]] = (),
    seconds: float = 0.0,
) -> None:
    if not cases:
        return
    failures = sum(case.failure is not None for case in cases)
    suite = ElementTree.SubElement(root, "testsuite", name=visible(name, _LONGEST), tests=str(len(cases)))
    suite.set("failures", str(failures))
    suite.set("errors", "0")
    suite.set("skipped", "0")
    suite.set("time", _time(seconds))
    moment = moment_of(record.started)
    if moment is not None:  # the schemas want it without a zone
        suite.set("timestamp", f"{moment:%Y-%m-%dT%H:%M:%S}")
    held = list(properties)
    if held:
        holder = ElementTree.SubElement(suite, "properties")
        for key, value in held:
            ElementTree.SubElement(holder, "property", name=visible(key), value=visible(value, _LONGEST))
    for case in cases:
        names = {"name": visible(case.name, _LONGEST), "classname": visible(f"onnxprune.{name}", _LONGEST)}
        element = ElementTree.SubElement(suite, "testcase", names, time="0.000")
        if case.failure is not None:
            kind, line = case.failure
            failure = ElementTree.SubElement(element, "failure", message=visible(line, _LONGEST), type=kind)
            failure.text = visible(case.told, _LONGEST)
        else:
            ElementTree.SubElement(element, "system-out").text = visible(case.told, _LONGEST)


def _verdict(record: Record) -> _Case:
    told = ". ".join(filter(None, (verdict_line(record), gain_line(record))))
    line = f"{VERDICTS[record.verdict]}: {verdict_line(record)}"
    return _Case("the run", told, None if record.verdict == "pass" else (record.verdict, line))


def _gate(gate: GateRecord) -> _Case:
    told = f"asked: {gate.requirement}; found: {measured_text(gate)}; {gate.detail}"
    line = f"{VERDICTS[gate.verdict]}: {gate.detail}"
    return _Case(gate.name, told, None if gate.verdict == "pass" else (gate.verdict, line))


def _checks(checks: Iterable[CheckRecord]) -> list[_Case]:
    return [
        _Case(check.name, check.detail, None if check.passed else ("fail", f"Failed: {check.detail}"))
        for check in checks
    ]


def _properties(record: Record) -> list[tuple[str, str]]:
    pairs = [("onnxprune", record.version), ("title", record.title), ("output", record.output)]
    pairs += [("recipe", record.recipe.path), ("recipe sha256", record.recipe.sha256)]
    pairs += [(f"sha256 of {model.name}", model.sha256) for model in record.models]
    pairs += [(f"version of {name}", version) for name, version in record.environment.packages.items()]
    pairs += [(f"hardware: {name}", figure_text(name, v)) for name, v in record.environment.hardware.items()]
    return pairs


def _time(seconds: float) -> str:
    return f"{seconds:.3f}"
