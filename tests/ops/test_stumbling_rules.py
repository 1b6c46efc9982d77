"""A rule that stumbles over a node freezes what the node touches, and says so; nothing ends."""

from __future__ import annotations

import pytest
from cutting import frozen_groups, graph, open_groups

from onnxprune.analyze import analyze
from onnxprune.ops import linking
from onnxprune.ops.base import rule_for

BODY = "h = MatMul(x, a) r = Relu(h) y = MatMul(r, b)"


@pytest.mark.parametrize(
    "error", [IndexError("tuple index"), ZeroDivisionError(), ValueError("shapes"), KeyError("k")]
)
def test_a_rule_that_fails_freezes_its_node(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    model = graph(BODY, inputs="float[N,4] x", constants={"a": (4, 6), "b": (6, 3)})
    assert open_groups(analyze(model))
    relu = next(node for node in model.graph if node.op_type == "Relu")

    class Stumbling(type(rule_for(relu))):  # type: ignore[misc]
        def link(self, *_: object) -> None:
            raise error

    monkeypatch.setattr(
        linking, "rule_for", lambda node: Stumbling() if node.op_type == "Relu" else rule_for(node)
    )
    analysis = analyze(model)
    assert not open_groups(analysis)
    assert any("make no sense" in reason for reason in frozen_groups(analysis).values())
    assert any(
        entry.reason.startswith("its inputs or attributes make no sense") for entry in analysis.unknown
    )


def test_a_bug_that_is_no_error_of_numbers_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    model = graph(BODY, inputs="float[N,4] x", constants={"a": (4, 6), "b": (6, 3)})

    class Broken:
        needs_shapes = False

        def link(self, *_: object) -> None:
            raise RuntimeError("a bug")

    monkeypatch.setattr(linking, "rule_for", lambda _: Broken())
    with pytest.raises(RuntimeError, match="a bug"):
        analyze(model)
