"""Parts as models of their own: one after the other they compute what the whole model computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph, some_channels
from generated import generated_model
from small_models import attention, concat_net, depthwise_net, mlp, residual_net

from onnxprune.analyze import Analysis, analyze
from onnxprune.feeds import random_feeds
from onnxprune.measure.part_times import observe_values
from onnxprune.parts import split_into_parts
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.part import cut_part
from onnxprune.runtime import open_session


def check_parts(analysis: Analysis, gone: np.ndarray) -> int:
    """Feed each part what the others made; compare all that passes between them with the whole cut model."""
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    pruned = cut(analysis.model, analysis.channels, gone)
    feeds = random_feeds(analysis.model, analysis.shapes.input_shapes, 0)
    between = list(dict.fromkeys(str(v.name) for part in parts for v in (*part.inputs, *part.outputs)))
    types, _ = observe_values(analysis.model, between, feeds)
    expected = open_session(pruned, optimize="none", extra_outputs=between).run(feeds)
    made = dict(feeds)
    for part in parts:
        if part.whole is not None:
            made.update({str(value.name): expected[str(value.name)] for value in part.outputs})
            continue
        alone = cut_part(part, analysis.channels, gone, types=types)
        found = open_session(alone, optimize="none").run(
            {str(v.name): made[str(v.name)] for v in part.inputs}
        )
        for name, array in found.items():
            assert array.shape == expected[name].shape
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
        made.update(found)
    return len(parts)


@pytest.mark.parametrize("make", [residual_net, depthwise_net, concat_net, attention, mlp])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_small_models(make, share):
    analysis = analyze(ir.from_proto(make()))
    removed = some_channels(analysis, 1, share) if share else {}
    assert check_parts(analysis, analysis.removed_labels(removed)) > 2


@pytest.mark.parametrize("seed", range(30))
def test_random_graphs_and_cuts(seed):
    analysis = analyze(ir.from_proto(generated_model(seed, depth=4)))
    check_parts(analysis, analysis.removed_labels(some_channels(analysis, seed, 0.4)))


def test_a_weight_that_two_parts_share_is_cut_for_each():
    analysis = analyze(
        graph(
            "h = MatMul(x, a_w) b = Add(h, k) g = MatMul(x, b_w) c = Add(g, k) s = Relu(b) t = Relu(c)"
            " p = MatMul(s, c_w) q = MatMul(t, d_w) y = Add(p, q)",
            inputs="float[N,6] x",
            constants={
                "a_w": (6, 8),
                "b_w": (6, 8),
                "c_w": (8, 3),
                "d_w": (8, 3),
                "k": np.ones(8, np.float32),
            },
        )
    )
    removed = {"a_w": np.array([0, 1, 2], np.int32), "b_w": np.array([7], np.int32)}
    check_parts(analysis, analysis.removed_labels(removed))


def test_sizes_that_are_rewritten_in_a_part():
    """Heads go: the targets of reshapes are constants in the part that reads them."""
    analysis = analyze(ir.from_proto(attention()))
    heads = next(group for group in analysis.groups if group.kind == "heads")
    gone = analysis.removed_labels({heads.name: np.array([1], np.int32)})
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    part = next(part for part in parts if any(node.op_type == "Reshape" for node in part.nodes))
    alone = cut_part(
        part, analysis.channels, gone, types={str(v.name): ir.DataType.FLOAT for v in part.inputs}
    )
    reshape = next(node for node in alone.graph if node.op_type == "Reshape")
    assert 3 in reshape.inputs[1].const_value.numpy().tolist()  # type: ignore[union-attr]
    check_parts(analysis, gone)


def test_inputs_have_the_sizes_of_after_and_free_axes():
    analysis = analyze(ir.from_proto(depthwise_net()))
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    group = next(group for group in analysis.groups if group.frozen is None)
    gone = analysis.removed_labels({group.name: np.array([0, 3], np.int32)})
    alone = cut_part(
        parts[1], analysis.channels, gone, types={str(parts[1].inputs[0].name): ir.DataType.FLOAT}
    )
    shape = alone.graph.inputs[0].shape
    assert shape is not None
    assert shape[1] == group.size - 2
    assert not isinstance(shape[0], int), "the batch stays free"


def test_the_analysed_model_is_not_changed():
    analysis = analyze(ir.from_proto(residual_net()))
    before = ir.to_proto(analysis.model).SerializeToString(deterministic=True)
    check_parts(analysis, analysis.removed_labels(some_channels(analysis, 0, 0.5)))
    assert ir.to_proto(analysis.model).SerializeToString(deterministic=True) == before


def test_an_input_of_unknown_type():
    analysis = analyze(ir.from_proto(residual_net()))
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    value = parts[1].inputs[0]
    value.type = None
    with pytest.raises(ValueError, match="too little is known"):
        cut_part(parts[1], analysis.channels, analysis.removed_labels({}))
