"""The record of a run as a document: written, read, and described by its schema."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import records

from onnxprune.errors import DataError
from onnxprune.record import Record, read_record, schema_text

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "report.schema.json"
MAKERS = [
    records.passing_record, records.failing_record, records.unclear_record, records.hostile_record,
    records.bare_record, records.large_record,
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_a_record_comes_back_from_its_document(make, tmp_path):
    record = make()
    path = tmp_path / "report.json"
    path.write_text(record.to_text(), encoding="ascii")
    assert read_record(path) == record


def test_new_keys_are_passed_over(tmp_path):
    document = json.loads(records.bare_record().to_text())
    document["later"] = 1
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document), encoding="ascii")
    assert read_record(path) == records.bare_record()


@pytest.mark.parametrize(("key", "value"), [("schema", 2), ("verdict", "maybe"), ("kind", "other")])
def test_another_schema_is_refused_with_the_place(key, value, tmp_path):
    document = json.loads(records.bare_record().to_text())
    document[key] = value
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document), encoding="ascii")
    with pytest.raises(DataError, match=f"no record of a run.*{key}"):
        read_record(path)


def test_the_published_schema_is_that_of_the_code():
    command = "python -c \"from onnxprune.record import schema_text; print(schema_text(), end='')\""
    told = f"write it anew: {command} > docs/report.schema.json"
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json.loads(schema_text()), told
    assert command in SCHEMA.with_name("report.md").read_text(encoding="utf-8")


def test_the_documents_name_every_key():
    text = SCHEMA.with_name("report.md").read_text(encoding="utf-8")
    keys = json.loads(schema_text())["properties"]
    assert [key for key in keys if f"`{key}`" not in text] == []
    assert set(keys) == {field.alias or name for name, field in Record.model_fields.items()}
