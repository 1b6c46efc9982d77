"""What tells machines apart."""

from __future__ import annotations

import pytest

from onnxprune import machine

X86 = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model name\t: Some CPU @ 2.10GHz
cpu MHz\t\t: 2100.000
flags\t\t: fpu avx512f  amx_tile

processor\t: 1
model name\t: Some CPU @ 2.10GHz
cpu MHz\t\t: 3900.000
flags\t\t: fpu avx512f  amx_tile
"""
ARM = "processor\t: 0\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd sve\nCPU part\t: 0xd40\n"


@pytest.fixture(autouse=True)
def _fresh():
    machine.processor.cache_clear()
    machine.graphics.cache_clear()
    yield
    machine.processor.cache_clear()
    machine.graphics.cache_clear()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (X86, ["model name: Some CPU @ 2.10GHz", "flags: fpu avx512f amx_tile"]),
        (ARM, ["Features: fp asimd sve"]),
    ],
)
def test_a_processor_and_its_instruction_sets(tmp_path, monkeypatch, text, told):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    monkeypatch.setattr(machine, "_CPU", file)
    line = machine.processor()
    assert all(part in line for part in told)
    assert "MHz" not in line, "what changes from hour to hour"
    assert "BogoMIPS" not in line
    assert line.endswith("cores")
    assert "\n" not in line


def test_other_flags_are_another_processor(tmp_path, monkeypatch):
    lines = set()
    for flags in ("avx2", "avx2 avx512f"):
        file = tmp_path / flags.replace(" ", "_")
        file.write_text(X86.replace("avx512f  amx_tile", flags))
        monkeypatch.setattr(machine, "_CPU", file)
        machine.processor.cache_clear()
        lines.add(machine.processor())
    assert len(lines) == 2


def test_where_the_system_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CPU", tmp_path / "absent")
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path / "absent")
    assert machine.processor().endswith("cores")
    assert machine.graphics() == ""


def test_graphics_devices(tmp_path, monkeypatch):
    (tmp_path / "0000:01:00.0").mkdir()
    (tmp_path / "0000:01:00.0" / "information").write_text("Model: \t\t NVIDIA Something\nIRQ: 12\n")
    monkeypatch.setattr(machine, "_NVIDIA", tmp_path)
    assert machine.graphics() == "NVIDIA Something"
