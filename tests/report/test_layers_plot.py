import pytest

from onnxprune.errors import UsageError
from onnxprune.report.layers_plot import MOST_LAYERS, _bars, draw_layers


def rows(count):
    return [{"layer": f"layer{index}", "ms": float(count - index)} for index in range(count)]


def test_the_slowest_come_first_and_the_rest_is_one_bar():
    bars = _bars(list(reversed(rows(MOST_LAYERS + 3))), ["ms"])
    assert [bar["layer"] for bar in bars[:2]] == ["layer0", "layer1"]
    assert bars[-1] == {"layer": "3 others together", "ms": 6.0}
    assert len(bars) == MOST_LAYERS + 1
    assert len(_bars(rows(MOST_LAYERS), ["ms"])) == MOST_LAYERS


def test_layers_that_came_or_went_have_one_bar_of_no_length():
    bars = _bars([{"layer": "a", "before_ms": None, "after_ms": 2.0}], ["before_ms", "after_ms"])
    assert bars == [{"layer": "a", "before_ms": 0.0, "after_ms": 2.0}]


@pytest.mark.parametrize("ending", [".svg", ".png", ".pdf"])
@pytest.mark.parametrize("count", [0, 1, MOST_LAYERS + 5])
def test_pictures(tmp_path, ending, count):
    pytest.importorskip("matplotlib")
    path = tmp_path / f"layers{ending}"
    draw_layers(rows(count), "bench m.onnx", path)
    assert path.stat().st_size > 500


def test_names_from_a_model_are_not_read_as_markup(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "layers.svg"
    hostile = "$\\frac{a}$ <script> \x1b[31m"
    draw_layers([{"layer": hostile, "before_ms": 1.0, "after_ms": None}], hostile, path)
    text = path.read_text()
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "\x1b" not in text
    assert "frac" in text


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(UsageError, match="ends in"):
        draw_layers(rows(1), "t", tmp_path / "layers.txt")
