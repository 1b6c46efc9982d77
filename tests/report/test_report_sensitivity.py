"""The report of a survey: order, columns, the sentence at the end."""

from __future__ import annotations

from onnxprune.report.sensitivity import sensitivity_report

AMOUNTS = [0.25, 0.5]


def row(group, removed, increase, size=8):
    share = removed / size
    return {"group": group, "size": size, "removed": removed, "removed_share": share, "increase": increase}


ROWS = [
    row("calm", 2, -1e-12), row("calm", 4, 0.01),
    row("wild", 2, 0.5), row("wild", 4, 2.0),
    row("single", 4, 0.3),
    row("broken", 2, 0.0), row("broken", 4, None),
]  # fmt: skip


def made(rows=ROWS, loss=0.5, metric="cross_entropy"):
    whole = {"loss": loss, "top1_share": 0.9}
    return sensitivity_report(
        rows, {"calm": "heads"}, metric=metric, whole=whole, amounts=AMOUNTS, setting={"samples": 3}
    )


def test_the_most_sensitive_comes_first_and_what_broke_before_it():
    table = made().sections["cross entropy added by removing"]
    assert [entry["group"] for entry in table] == ["broken", "wild", "single", "calm"]
    assert table[1] == {"group": "wild", "kind": None, "size": 8, "25%": 0.5, "50%": 2.0}
    assert table[2]["25%"] == table[2]["50%"] == 0.3  # the nearest count that alignment allowed
    assert table[3]["25%"] == 0  # rounding is no figure
    assert table[0]["50%"] is None


def test_the_sentence_names_the_cheapest():
    assert made().sections["in short"]["cheapest"] == (
        "calm, single and wild cost least: removing 50% of each alone adds at most 2 to a "
        "cross entropy of 0.5"
    )
    assert made(ROWS[:2], 0.0, "divergence").sections["in short"]["cheapest"] == (
        "calm costs least: removing 50% of it brings the divergence to at most 0.01"
    )


def test_nothing_is_said_where_nothing_is_known():
    assert "in short" not in made([row("broken", 4, None)]).sections


def test_setting_leaves_out_what_there_is_not():
    report = sensitivity_report(
        ROWS,
        {},
        metric="kl",
        whole={"loss": 0.0, "top1_share": None},
        amounts=AMOUNTS,
        setting={"samples": 3},
    )
    assert report.sections["setting"] == {"kl": 0.0, "samples": 3}
    assert len(report.sections["trials"]) == len(ROWS)
