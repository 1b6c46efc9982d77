"""Borders: a part of a convolutional network runs as it runs within the whole."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from small_models import attention, depthwise_net, residual_net

from onnxprune.analyze import analyze
from onnxprune.measure.borders import Borders, add_borders, images
from onnxprune.runtime import open_session


def image_names(model: ir.Model) -> set[str]:
    analysis = analyze(model)
    shapes = {value: analysis.shapes.shape(value) or () for value in analysis.shapes.dims}
    return {str(value.name) for value in images(analysis.model.graph, shapes)}


def test_images_are_what_convolutions_hand_on():
    names = image_names(ir.from_proto(residual_net()))
    assert {"stem_bn_relu", "block1_sum_relu", "block2_sum"} <= names
    assert "x" not in names, "the input of the model is plain"
    assert not {"flat", "y"} & names


def test_four_axes_alone_make_no_image():
    assert image_names(ir.from_proto(attention())) == set()


def test_a_sum_is_an_image_by_what_it_adds():
    names = image_names(
        graph(
            "h = Conv(x, a_w) s = Sigmoid(h) m = Mul(h, s) p = Transpose<perm = [0, 2, 3, 1]>(m) y = Relu(p)",
            constants={"a_w": (8, 3, 3, 3)},
        )
    )
    assert names == {"h", "s", "m"}


def part_with_border(channels: int = 8) -> tuple[ir.Model, Borders]:
    model = graph(
        "h = Conv(x, a_w) s = Add(h, k) y = Relu(s)",
        inputs=f"float[2,{channels},6,6] x, float[2,{channels},4,4] k",
        constants={"a_w": (channels, channels, 3, 3)},
    )
    shapes = {"x": (2, channels, 6, 6), "k": (2, channels, 4, 4), "y": (2, channels, 4, 4)}
    return model, add_borders(model, ["x", "k", "y"], shapes)


def test_a_part_between_borders_computes_the_same():
    """The border in front spreads one channel over all, halved; the one behind halves the first pixel."""
    model, borders = part_with_border()
    random = np.random.default_rng(0)
    feeds = {"x": random.standard_normal((2, 1, 6, 6)), "k": random.standard_normal((2, 1, 4, 4))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    found = next(iter(open_session(model).run(feeds).values()))
    plain = graph(
        "h = Conv(x, a_w) s = Add(h, k) y = Relu(s)",
        inputs="float[2,8,6,6] x, float[2,8,4,4] k",
        constants={"a_w": (8, 8, 3, 3)},
    )
    whole = {name: np.repeat(array / 2, 8, axis=1) for name, array in feeds.items()}
    expected = open_session(plain).run(whole)["y"]
    np.testing.assert_allclose(found, expected[:, :, :1, :1] / 2, rtol=1e-5, atol=1e-6)
    assert borders.inputs == {"x", "k"}
    assert len(borders.added) == 5
    assert len(borders.ends) == 3
    assert borders.ends < borders.added


def test_images_off_the_grid_stay_plain():
    model, borders = part_with_border(6)
    assert borders == Borders(frozenset(), frozenset(), frozenset())
    assert [node.op_type for node in model.graph] == ["Conv", "Add", "Relu"]


def test_ends_that_are_no_images_stay():
    model = ir.from_proto(depthwise_net())
    before = [value.name for value in model.graph.outputs]
    borders = add_borders(model, [], {})
    assert not borders.added
    assert [value.name for value in model.graph.outputs] == before


@pytest.mark.parametrize("channels", [4, 8, 12, 16, 20])
def test_any_multiple_of_four_runs(channels):
    model, _ = part_with_border(channels)
    feeds = {"x": np.ones((2, 1, 6, 6), np.float32), "k": np.ones((2, 1, 4, 4), np.float32)}
    assert len(open_session(model).run(feeds)) == 3
