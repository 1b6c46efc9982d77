"""Names that want more than to be read: none reaches a terminal, a build server, a page or a shell."""

from __future__ import annotations

import json
import re

import numpy as np
import onnx
import pytest
import small_models

NAMES = (
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "a\x08\x08b", "a\nb", "a\r\nb", "\u202egnp.exe",
    "\u200bzero", "::error file=x::y", "##[error]x", "##vso[task.setvariable]x", "::set-env name=a::b",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "](javascript:alert(1))", "{{7*7}}{%x%}",
    "%s%n{0}", "$(touch evil)", "`touch evil`", "; touch evil", "../../evil", "/evil/evil",
    "=cmd|' /C calc'!A0", "a|b", "'\"", "\x7f", "\u2028", "x" * 300,
)  # fmt: skip

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202a-\u202e\u2066-\u2069]")
_COMMAND = re.compile(r"(?m)^\s*::[a-zA-Z]|##\[|##vso\[|##teamcity\[")


def harmless(text: str) -> None:
    assert not _CONTROL.search(text), _CONTROL.search(text)
    assert not _COMMAND.search(text), _COMMAND.search(text)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A model whose every name is one of these, and data for it."""
    folder = tmp_path_factory.mktemp("hostile")
    proto = small_models.residual_net(width=8)
    graph = proto.graph
    interface = {value.name for value in (*graph.input, *graph.output)}
    renamed: dict[str, str] = {"": ""}
    number = 0

    def rename(name: str) -> str:
        nonlocal number
        if name in interface or name in renamed:
            return renamed.get(name, name)
        bad = NAMES[number % len(NAMES)]
        renamed[name] = f"{bad}{number if number >= len(NAMES) else ''}"
        number += 1
        return renamed[name]

    for weight in graph.initializer:
        weight.name = rename(weight.name)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [rename(name) for name in names]
    for position, node in enumerate(graph.node):
        node.name = NAMES[position % len(NAMES)] + str(position)
        node.doc_string = NAMES[(position + 1) % len(NAMES)]
    graph.name = graph.doc_string = "".join(NAMES[:12])
    proto.producer_name = proto.producer_version = proto.domain = NAMES[1] + NAMES[8]
    for place, name in enumerate(NAMES[:10]):
        proto.metadata_props.add(key=f"{name}{place}", value=name)
    path = folder / "model.onnx"
    onnx.save(proto, path)
    rng = np.random.default_rng(0)
    np.savez(
        folder / "data.npz",
        x=rng.standard_normal((24, 3, 8, 8)).astype(np.float32), label=rng.integers(0, 10, 24),
        segment=np.array([NAMES[i % 6] for i in range(24)]),
    )  # fmt: skip
    return folder


WRITTEN = ("a.onnx", "c.onnx", "d.onnx", "a.plan", "plan.json", "graph.json", "masks.safetensors")
COMMANDS = {
    "inspect": "inspect {model}",
    "channels": "prune {model} -o {out}/a.onnx --amount 0.25 --align 1 --plan {out}/a.plan",
    "nothing": "prune {model} -o {out}/b.onnx --pattern heads --amount 0.5",
    "wanda": "prune {model} -o {out}/c.onnx --pattern 2:4 --score wanda --data {data}",
    "sensitivity": "sensitivity {model} --data {data} --amounts 0.5 --align 1",
    "validate": "validate {model} --data {data}",
    "protect": "prune {model} -o {out}/d.onnx --amount 0.25 --protect nothing-like-this",
}


@pytest.mark.parametrize("form", [[], ["--verbose"], ["--json"]], ids=["table", "verbose", "json"])
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_printed(run, hostile, tmp_path, command, form):
    words = COMMANDS[command].format(model=hostile / "model.onnx", data=hostile / "data.npz", out=tmp_path)
    ran = run(*words.split(), *form)
    assert ran.status in (0, 1, 2, 4)
    harmless(ran.out)
    harmless(ran.err)
    assert "Traceback" not in ran.err
    if form == ["--json"]:
        assert ran.out.isascii()
        json.loads(ran.out)
    for file in tmp_path.rglob("*"):
        assert file.name in WRITTEN
    if command == "channels" and ran.status == 0:
        for again in ("inspect {out}/a.plan", "verify {out}/a.onnx --against {model} --plan {out}/a.plan"):
            ran = run(*again.format(model=hostile / "model.onnx", out=tmp_path).split(), *form)
            assert ran.status == 0, ran.err
            harmless(ran.out)
            harmless(ran.err)


RECIPE = """
[model]
path = "{folder}/model.onnx"
[data]
calibration = "{folder}/data.npz"
evaluation = "{folder}/data.npz"
metric = "top1"
[run]
pairs = 20
[[stages]]
kind = "prune"
amount = 0.25
align = 1
[gates]
accuracy_drop = 0.9
segment_drop = 0.9
[output]
model = "small.onnx"
plan = "small.plan"
json = "report.json"
html = "report.html"
markdown = "report.md"
junit = "report.xml"
"""


def test_what_a_run_writes(run, hostile, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=hostile))
    ran = run("compress", tmp_path / "recipe.toml")
    harmless(ran.out)
    harmless(ran.err)
    assert ran.status in (0, 3), ran.err
    for name in ("report.json", "report.html", "report.md", "report.xml"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert not _CONTROL.search(text.replace("\t", "")), name
        assert not re.search(r"(?m)^\s*::[a-zA-Z]", text), name
        if name in ("report.html", "report.xml"):
            assert "<script" not in text
            assert "<img" not in text
    again = run("report", tmp_path / "report.json", "--html", tmp_path / "again.html")
    assert again.status == 0
    assert "Content-Security-Policy" in (tmp_path / "again.html").read_text(encoding="utf-8")
    printed = run("report", tmp_path / "report.json")
    harmless(printed.out)


def test_weights_keep_their_names(run, hostile, tmp_path):
    """What is shown is escaped; what is written is not."""
    out = tmp_path / "out.onnx"
    assert run("prune", hostile / "model.onnx", "-o", out, "--pattern", "2:4").status == 0
    before = {weight.name for weight in onnx.load(hostile / "model.onnx").graph.initializer}
    assert {weight.name for weight in onnx.load(out).graph.initializer} == before
