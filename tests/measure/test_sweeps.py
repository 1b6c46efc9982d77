import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxprune.errors import UsageError
from onnxprune.measure import turns
from onnxprune.measure.sweeps import sweep
from onnxprune.runtime import Execution


def product(batch="n"):
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[{batch}, 32] x) => (float[{batch}, 32] y) {{
        w = Constant<value_float = 0.5>()  y = Mul(x, w) }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


def test_every_batch_with_every_number_of_threads():
    shares = []
    rows = sweep(product(), product(), batches=[1, 4], threads=[1, 2], pairs=20, progress=shares.append)
    assert [(row["batch"], row["threads"]) for row in rows] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    for row in rows:
        assert row["a_per_s"] == pytest.approx(row["batch"] / row["a_ms"] * 1000)
        assert row["b_per_s"] == pytest.approx(row["batch"] / row["b_ms"] * 1000)
        assert row["verdict"] in ("faster", "slower", "no difference", "inconclusive")
        assert row["ratio"]["low"] <= row["ratio"]["value"] <= row["ratio"]["high"]
    json.dumps(rows)


def test_one_model_over_threads_at_the_batch_of_the_setting():
    (row,) = sweep(product(), threads=[1], batch=3, pairs=20)
    assert (row["batch"], row["b_ms"], row["ratio"], row["verdict"]) == (3, None, None, None)
    (row,) = sweep(product(), batches=[2], batch=3, pairs=20, execution=Execution(threads=2))
    assert (row["batch"], row["threads"]) == (2, 2)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batches": [0]}, "batches from 1"),
        ({"threads": [-1]}, "threads from 0"),
        ({"batches": [1, 2]}, "fixed batch of 1, not 2"),
        ({"threads": [1, 2], "execution": Execution(pin="0")}, "1 cores for 2 threads"),
    ],
)
def test_misuse(options, match):
    with pytest.raises(UsageError, match=match):
        sweep(product(batch=1), pairs=20, **options)


def test_the_samples_of_a_batch_reach_the_model():
    """Not the batch of one that is the default."""
    seen = []
    original = turns.take_turns

    def spy(runs, pairs, **more):
        seen.append(np.asarray(runs[0]()["y"]).shape)
        return original(runs, pairs, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxprune.measure.latency.take_turns", spy)
        sweep(product(), batches=[1, 8], pairs=20)
    assert seen == [(1, 32), (8, 32)]


def test_a_batch_that_the_model_does_not_take_is_refused_before_anything_is_measured(monkeypatch):
    measured = []
    monkeypatch.setattr("onnxprune.measure.sweeps.benchmark", lambda *_, **setting: measured.append(setting))
    with pytest.raises(UsageError, match="fixed batch of 1, not 2"):
        sweep(product(batch=1), batches=[1, 2], pairs=20)
    assert measured == []
