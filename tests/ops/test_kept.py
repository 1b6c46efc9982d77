"""What is left of every axis after a cut, and where operators write it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph, group_of

from onnxprune.analyze import Analysis, analyze
from onnxprune.model.names import Names
from onnxprune.ops.kept import Kept

CONSTANTS = {"a_w": (6, 8), "c_w": (8, 3), "sizes": [3, 5]}
BODY = "h = MatMul(x, a_w) u, v = Split<axis = 2>(h, sizes) j = Concat<axis = 2>(v, u) y = MatMul(j, c_w)"


def analysed() -> Analysis:
    return analyze(graph(BODY, inputs="float[N,5,6] x", constants=CONSTANTS))


def node(model: ir.Model, op_type: str) -> ir.Node:
    return next(n for n in model.graph if n.op_type == op_type)


def kept_after(analysis: Analysis, positions: list[int], **written: object) -> Kept:
    gone = np.zeros(analysis.channels.labels.count, np.bool_)
    (block,) = analysis.channels.blocks[node(analysis.model, "MatMul").outputs[0]]
    gone[block.labels[positions, 0]] = True
    return Kept(analysis.channels, gone, **written)  # type: ignore[arg-type]


def test_masks_counts_and_shapes() -> None:
    analysis = analysed()
    kept = kept_after(analysis, [0, 4, 7])
    split = node(analysis.model, "Split")
    np.testing.assert_array_equal(kept.input(split, 0)[2], [0, 1, 1, 1, 0, 1, 1, 0])
    u, v = split.outputs
    assert [kept.count(u, 2), kept.count(v, -1)] == [2, 3]
    assert kept.shape(u) == (2, 5, 2)
    joined = node(analysis.model, "Concat").outputs[0]
    np.testing.assert_array_equal(kept.masks(joined)[2], [1, 0, 1, 1, 0, 0, 1, 1])


def test_axes_that_lose_nothing_have_no_mask() -> None:
    analysis = analysed()
    kept = kept_after(analysis, [0])
    u, v = node(analysis.model, "Split").outputs
    assert kept.masks(v) == {}
    assert list(kept.masks(u)) == [2]
    assert kept.shape(v) == (2, 5, 5)


def test_old_numbers() -> None:
    analysis = analysed()
    kept = kept_after(analysis, [0])
    split = node(analysis.model, "Split")
    assert kept.old_ints(split, 1) == [3, 5]
    assert kept.old_ints(split, 0) is None


def test_new_numbers_leave_other_users_of_the_old_ones_alone() -> None:
    analysis = analysed()
    copy = analysis.model.clone()
    copies = dict(zip(analysis.model.graph, copy.graph, strict=True))
    kept = kept_after(analysis, [0], copies=copies, names=Names(copy.graph))
    split = node(analysis.model, "Split")
    kept.set_ints(split, 1, [2, 5])
    new = copies[split].inputs[1]
    assert new is not None
    assert new.const_value is not None
    assert new.const_value.numpy().tolist() == [2, 5]
    assert new.const_value.dtype == ir.DataType.INT64
    assert copy.graph.initializers["sizes"].const_value.numpy().tolist() == [3, 5]  # type: ignore[union-attr]
    assert split.inputs[1].name == "sizes"  # type: ignore[union-attr]


def test_numbers_that_the_node_did_not_have() -> None:
    model = graph(
        "h = MatMul(x, a_w) u, v = Split<axis = 2>(h) y = Add(u, v)",
        inputs="float[N,5,6] x",
        constants={"a_w": (6, 8)},
    )
    analysis = analyze(model)
    copy = analysis.model.clone()
    copies = dict(zip(analysis.model.graph, copy.graph, strict=True))
    gone = np.zeros(analysis.channels.labels.count, np.bool_)
    kept = Kept(analysis.channels, gone, copies, Names(copy.graph))
    split = node(analysis.model, "Split")
    kept.set_ints(split, 1, [3, 3])
    assert len(split.inputs) == 1
    assert copies[split].inputs[1].const_value.numpy().tolist() == [3, 3]  # type: ignore[union-attr]


def test_nothing_is_written_without_a_copy() -> None:
    analysis = analysed()
    with pytest.raises(KeyError):
        kept_after(analysis, [0]).set_ints(node(analysis.model, "Split"), 1, [2, 5])


def test_a_ragged_cut_is_refused() -> None:
    """A joint block that loses one position of one row is no rectangle."""
    body = "h = MatMul(x, a_w) r = Reshape(h, s) g = Relu(r) f = Reshape(g, m) y = MatMul(f, c_w)"
    constants = {"a_w": (6, 8), "c_w": (8, 3), "s": [0, 5, 2, 4], "m": [0, 5, 8]}
    analysis = analyze(graph(body, inputs="float[N,5,6] x", constants=constants))
    relu = node(analysis.model, "Relu").outputs[0]
    group = group_of(analysis, "a_w", 1)
    assert group.size in (2, 4)  # rows of the joint block are coupled already
    analysis.channels.blocks[relu] = [
        type(block)(block.axes, np.arange(1, 9, dtype=np.int32).reshape(2, 4, 1))
        for block in analysis.channels.blocks[relu]
    ]
    gone = np.zeros(max(analysis.channels.labels.count, 9), np.bool_)
    gone[3] = True
    with pytest.raises(AssertionError, match="ragged"):
        Kept(analysis.channels, gone).masks(relu)
