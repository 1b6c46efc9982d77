"""What a part takes: which kernels count, which runs, and how often."""

from __future__ import annotations

import gc

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph
from small_models import mlp

from onnxprune.errors import RuntimeFailure
from onnxprune.measure import part_times
from onnxprune.measure.borders import Borders
from onnxprune.measure.part_times import observe_values, time_part, typical_ms
from onnxprune.runtime import Execution, Kernel

BORDERS = Borders(frozenset({"front", "reader", "behind"}), frozenset({"x"}), frozenset({"reader", "behind"}))


def kernel(op_type: str, *covers: str, microseconds: float = 10.0) -> Kernel:
    return Kernel(op_type, op_type, covers, np.full(8, microseconds))


def bursts(monkeypatch, *milliseconds: float) -> list[int]:
    """Let bursts take these times; return how many runs each was asked for."""
    asked: list[int] = []
    waiting = list(milliseconds)

    def kernels(model, feeds, execution, *, runs, warm_up):
        asked.append(runs)
        return (kernel("Conv", "conv", microseconds=1000 * waiting.pop(0)),)

    monkeypatch.setattr(part_times, "time_kernels", kernels)
    return asked


def timed(monkeypatch, *milliseconds: float):
    asked = bursts(monkeypatch, *milliseconds)
    return time_part(ir.from_proto(mlp()), {}, Execution()), asked


def test_borders_and_what_is_reordered_for_them_do_not_count():
    kernels = [
        kernel("Conv", "front"),
        kernel("ReorderOutput"),  # the part reads a plain image
        kernel("Conv", "reader"),
        kernel("ReorderOutput"),  # given away
        kernel("Conv", "conv", "relu"),
        kernel("ReorderInput"),  # the part makes a plain image, and the next one reads blocks
        kernel("Conv", "behind"),
        kernel("ReorderOutput"),  # given away
        kernel("Mul", "mul"),
    ]
    own = part_times._own(kernels, BORDERS)
    assert [k.op_type for k in own] == ["ReorderOutput", "Conv", "ReorderInput", "Mul"]
    assert own[0] is kernels[1]


def test_the_fastest_quarter_counts():
    assert typical_ms(np.array([9.0, 1, 900, 3, 9, 9, 9, 9])) == pytest.approx(0.002)
    assert typical_ms(np.array([7.0, 5, 600])) == pytest.approx(0.006), "two runs at least"
    assert typical_ms(np.zeros(8)) == 0.0005, "nothing takes no time"


def test_two_bursts_that_agree_are_enough(monkeypatch):
    found, asked = timed(monkeypatch, 1.02, 1.0)
    assert found.milliseconds == pytest.approx(1.0)
    assert found.spread == pytest.approx(0.02)
    assert found.bursts == len(asked) == 2
    assert found.agreed


def test_bursts_that_disagree_are_repeated(monkeypatch):
    found, _ = timed(monkeypatch, 3.0, 2.0, 1.0, 1.01)
    assert found.milliseconds == pytest.approx(1.0)
    assert found.bursts == 4
    assert found.agreed


def test_a_busy_machine_is_given_up_on_and_said(monkeypatch):
    found, asked = timed(monkeypatch, 5.0, 4.0, 3.0, 2.0, 1.0)
    assert found.milliseconds == pytest.approx(1.0)
    assert len(asked) == 5
    assert not found.agreed


def test_short_parts_agree_by_the_resolution_and_run_more_often(monkeypatch):
    found, asked = timed(monkeypatch, 0.008, 0.0065)
    assert found.agreed
    assert asked[1] > asked[0]
    _, asked = timed(monkeypatch, 50.0, 50.0)
    assert asked[1] == asked[0]


def test_nothing_is_collected_meanwhile(monkeypatch):
    on = []

    def kernels(*_, **__):
        on.append(gc.isenabled())
        return (kernel("Conv", "conv"),)

    monkeypatch.setattr(part_times, "time_kernels", kernels)
    time_part(ir.from_proto(mlp()), {}, Execution())
    assert not any(on)
    assert gc.isenabled()


def test_a_real_part():
    model = graph("y = MatMul(x, a_w)", inputs="float[64,64] x", constants={"a_w": (64, 64)})
    found = time_part(model, {"x": np.ones((64, 64), np.float32)}, Execution())
    assert 0 < found.milliseconds < 1000
    assert 2 <= found.bursts <= 5


def test_wall_time_stands_in_where_kernels_are_not_seen(monkeypatch):
    monkeypatch.setattr(part_times, "runs_on_cpu", lambda _: False)
    monkeypatch.setattr(part_times, "time_kernels", None)
    model = graph("y = MatMul(x, a_w)", inputs="float[64,64] x", constants={"a_w": (64, 64)})
    assert time_part(model, {"x": np.ones((64, 64), np.float32)}, Execution()).milliseconds > 0


def test_a_part_that_does_not_run():
    model = graph("y = MatMul(x, a_w)", inputs="float[4,6] x", constants={"a_w": (6, 3)})
    with pytest.raises(RuntimeFailure):
        time_part(model, {"x": np.ones((4, 7), np.float32)}, Execution())


def test_types_of_values_and_contents_of_integers():
    model = graph(
        "h = MatMul(x, a_w) i = Cast<to = 7>(h) b = Less(h, zero) n = Cast<to = 1>(i) y = MatMul(n, b_w)",
        inputs="float[4,6] x",
        constants={"a_w": (6, 8), "b_w": (8, 3), "zero": np.zeros((), np.float32)},
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32) * 9}
    types, contents = observe_values(model, ["h", "i", "b"], feeds)
    assert types["h"] == types["x"] == ir.DataType.FLOAT
    assert (types["i"], types["b"]) == (ir.DataType.INT64, ir.DataType.BOOL)
    assert contents.keys() == {"i", "b", "x"}
    product = feeds["x"] @ model.graph.initializers["a_w"].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_array_equal(contents["i"], product.astype(np.int64))
