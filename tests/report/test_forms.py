"""The forms of a report as files, and the command that draws them anew."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest
import records

from onnxprune.errors import OutputError, UsageError
from onnxprune.record import read_record
from onnxprune.report.forms import FORMS, check_forms, write_forms
from onnxprune.report.html import html
from onnxprune.report.markdown import markdown
from onnxprune_cli.main import execute


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(records.failing_record().to_text(), encoding="ascii")
    return path


def test_all_forms_are_written(tmp_path):
    record = records.passing_record()
    targets = {form: tmp_path / form for form in FORMS}
    write_forms(record, targets)
    assert read_record(targets["json"]) == record
    assert targets["html"].read_text(encoding="utf-8") == html(record)
    assert targets["markdown"].read_text(encoding="utf-8") == markdown(record)
    assert ElementTree.parse(targets["junit"]).getroot().tag == "testsuites"


def test_nothing_is_written_where_one_can_not_be_drawn(tmp_path, monkeypatch):
    def fail(record):
        raise RuntimeError("no")

    monkeypatch.setattr("onnxprune.report.junit.junit", fail)
    with pytest.raises(RuntimeError):
        write_forms(records.bare_record(), {form: tmp_path / form for form in FORMS})
    assert list(tmp_path.iterdir()) == []


def test_inputs_and_each_other_are_not_written_over(tmp_path, document):
    with pytest.raises(UsageError, match="is an input of this command"):
        check_forms({"html": tmp_path / "." / "report.json"}, document)
    link = tmp_path / "link.html"
    link.symlink_to(document)
    with pytest.raises(UsageError, match="is an input"):
        check_forms({"html": link}, document)
    with pytest.raises(UsageError, match="is an input"):
        check_forms({"html": document}, link)
    with pytest.raises(UsageError, match="is where html goes"):
        check_forms({"html": tmp_path / "a", "junit": tmp_path / "b" / ".." / "a"}, document)
    with pytest.raises(OutputError, match="there is no folder"):
        check_forms({"html": tmp_path / "missing" / "a.html"}, document)


def test_the_command_writes_what_is_asked_for_and_ends_with_0(document, tmp_path, capsys):
    page, xml = tmp_path / "a.html", tmp_path / "a.xml"
    assert execute(["report", str(document), "--html", str(page), "--junit", str(xml)]) == 0
    assert page.read_text(encoding="utf-8") == html(records.failing_record())
    assert xml.exists()
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "accuracy_drop" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.xml", "report.json"]


def test_without_a_file_the_command_prints_the_markdown(document, capsys):
    assert execute(["report", str(document)]) == 0
    assert capsys.readouterr().out == markdown(records.failing_record())
    assert execute(["report", str(document), "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_the_document_of_the_command_says_the_verdict(document, capsys):
    assert execute(["report", str(document), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert found["sections"]["verdict"]["verdict"] == "fail"
    assert found["sections"]["written"] == {}
    assert (
        next(check for check in found["checks"] if check["name"] == "gate accuracy_drop")["passed"] is False
    )


@pytest.mark.parametrize(
    "contents", ["", "[]", '{"schema": 2}', '{"schema": 1}', "{", '{"schema": 1, "version": "\\u001b[31m"}']
)
def test_what_is_no_record_is_refused_in_one_line(contents, tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text(contents, encoding="utf-8")
    page = tmp_path / "page.html"
    assert execute(["report", str(path), "--html", str(page)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "no record of a run" in told
    assert not page.exists()


def test_a_file_where_a_folder_should_be_is_told_before_reading(document, tmp_path, capsys):
    assert execute(["report", str(document), "--html", str(tmp_path / "no" / "a.html")]) == 1
    assert "there is no folder" in capsys.readouterr().err
    assert execute(["report", str(document), "--html", str(document)]) == 1
