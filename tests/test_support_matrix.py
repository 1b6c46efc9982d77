"""No architecture gets worse than it stands in docs/support-matrix.json.

After a change that is meant, or an improvement: ``python benchmarks/support_matrix.py --write``, then read
the difference of the page.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support_matrix import (
    PAGE,
    Row,
    Run,
    architecture_file,
    as_dict,
    cells,
    from_dict,
    in_general,
    make_row,
    read_figures,
    worsened,
)

from onnxprune.ops import base

ROWS = read_figures()

#: A few of the families, in the quicker exporter's files; all the rest are for the long run.
QUICK = (
    "residual_basic", "inverted_residual", "channel_shuffle", "fused_vision_transformer", "rotary_decoder",
    "gru_classifier",
)  # fmt: skip


def _marked(model: str, exporter: str) -> object:
    marks = () if exporter == "ts" and model in QUICK else (pytest.mark.long,)
    return pytest.param(model, exporter, id=f"{model}-{exporter}", marks=marks)


@pytest.fixture
def _torch() -> None:
    torch = pytest.importorskip("torch", reason="the architectures are torch modules")
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(("model", "exporter"), [_marked(*key) for key in ROWS])
def test_a_row_is_as_good_as_it_was(model: str, exporter: str, tmp_path: Path) -> None:
    row = make_row(model, exporter, architecture_file(model, exporter, tmp_path))
    assert worsened(ROWS[model, exporter], row) == []


@pytest.mark.usefixtures("_torch")
def test_every_architecture_has_a_row() -> None:
    import architectures

    assert set(ROWS) == {
        (model, exporter) for model in architectures.ARCHITECTURES for exporter in ("ts", "dynamo")
    }
    assert set(architectures.ATTENTION) == {model for model, _ in ROWS if "heads" in ROWS[model, "ts"].runs}


@pytest.mark.usefixtures("_torch")
@pytest.mark.parametrize(("model", "operator"), [("gru_classifier", "GRU"), ("residual_basic", "Relu")])
def test_a_rule_that_is_lost_makes_a_row_worse(
    model: str, operator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail: without a rule, what the operator touches stays whole."""
    path = architecture_file(model, "ts", tmp_path)
    monkeypatch.delitem(base._RULES, ("", operator))
    lines = worsened(ROWS[model, "ts"], make_row(model, "ts", path))
    assert any("groups are open" in line for line in lines)
    assert any("of the parameters are kept" in line or "exit 4" in line for line in lines)


def test_what_counts_as_worse() -> None:
    before = Row(
        "m", "ts", 9, 3, 4, {}, {"channels": Run(0, None, 0.3, 0.25), "heads": Run(0, None, 0.8, 0.7)}
    )
    one = before.runs["channels"]

    def after(run: Run, **changes: object) -> Row:
        return replace(before, runs={**before.runs, "channels": run}, **changes)  # type: ignore[arg-type]

    assert worsened(before, before) == []
    assert worsened(before, after(replace(one, parameters=0.304, macs=0.2), groups_open=5)) == []
    assert worsened(before, after(one, groups_open=2)) == ["2 groups are open, 3 were"]
    assert worsened(before, after(replace(one, macs=0.256))) == [
        "channels: 0.256 of the macs are kept, 0.250 were"
    ]
    assert worsened(before, after(replace(one, parameters=0.31))) != []
    assert worsened(before, after(Run(1, "proof"))) == ["channels: exit 1 (proof), was 0"]
    assert worsened(before, replace(before, runs={"channels": one})) != []


def test_a_row_is_read_as_it_was_written() -> None:
    row = Row("m", "ts", 9, 3, 4, {"a reason": 1}, {"channels": Run(0, None, 0.3, 0.25, 1e-7, 2.0, 0.6)})
    assert from_dict(as_dict(row)) == replace(row, runs={"channels": Run(0, None, 0.3, 0.25)})


def test_the_page_holds_the_rows_of_the_figures() -> None:
    page = PAGE.read_text()
    for row in ROWS.values():
        shares = [cell for cell in cells(row)[3:6] if cell]
        line = next(
            line for line in page.splitlines() if line.startswith(f"| {row.model} | {row.exporter} |")
        )
        assert all(cell in line for cell in shares), row.model


@pytest.mark.parametrize(
    ("reason", "general"),
    [
        ("output 75 of the model", "output of the model"),
        ("output logits of the model", "output of the model"),
        ("its positions are removed by way of head", "by way of another group"),
        ("/2/Pad pads this axis", "pads this axis"),
        ("a convolution slides along this axis (/spatial/Conv)", "a convolution slides along this axis"),
        ("node_view has a computed target shape", "has a computed target shape"),
        ("/a.0/norm takes mean and deviation over these channels: cutting them is not exact",
         "takes mean and deviation over these channels"),
    ],
)  # fmt: skip
def test_reasons_are_counted_without_names(reason: str, general: str) -> None:
    assert in_general(reason) == general
