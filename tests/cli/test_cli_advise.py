"""onnxprune advise on files."""

from __future__ import annotations

import pytest

LIMIT = ("--time-limit", "3")


def test_a_verdict_comes_first(run, saved):
    ran = run("advise", saved["residual_net"], *LIMIT)
    assert ran.status == 0
    lines = ran.out.splitlines()
    assert lines[0] == f"advise {saved['residual_net']}"
    assert lines[2] == "verdict"
    for text in ("where the time goes", "layers", "machine", "setting"):
        assert text in ran.out
    assert "sparse tensor cores" not in ran.out  # not on a CPU, unless all is asked for


def test_json_has_all_of_it(run, saved):
    ran = run("advise", saved["attention"], *LIMIT, "--json", "--batch", "2", "--threads", "1")
    assert ran.status == 0
    sections = ran.document["sections"]
    assert sections["setting"]["input_shapes"] == {"x": [2, 6, 32]}
    assert {"verdict", "actions", "not worth it", "layers", "limits", "machine"} <= sections.keys()
    tried = [row["action"] for row in sections["actions"]] + [
        row["candidate"] for row in sections["not worth it"]
    ]
    assert "remove 50% of the heads" in tried
    rows = sections["2:4 on sparse tensor cores"]
    assert all({"axis", "summed", "outputs", "eligible", "why"} <= row.keys() for row in rows)


def test_nothing_to_do_is_no_failure(run, saved):
    ran = run("advise", saved["frozen_net"], "--time-limit", "0.1")
    assert ran.status == 0
    assert "Leave it alone" in ran.out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--provider-option", "threads"), 2, "KEY=VALUE"),
        (("--provider", "tensorflow"), 2, "tensorrt"),
        (("--time-limit", "0"), 2, "--time-limit"),
        (("--data", "none.npz"), 1, "none.npz"),
        (("--input-shape", "z=1"), 2, "z"),
    ],
)
def test_errors_are_one_line(run, saved, arguments, status, said):
    ran = run("advise", saved["mlp"], *arguments)
    assert ran.status == status
    assert said in ran.error
