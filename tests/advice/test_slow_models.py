"""Models whose runs are long: the original stays open, and its control is measured once."""

from __future__ import annotations

import onnx_ir as ir
import small_models

from onnxprune import Execution, advise
from onnxprune.advice import run as module
from onnxprune.measure.intervals import Estimate


def test_one_control_serves_all_candidates(monkeypatch):
    originals, models = [], []
    given = ir.from_proto(small_models.residual_net())

    def quick_ratio(original, model, feeds, execution):
        originals.append(original)
        models.append(model)
        ratio = 1.0 if model is given else 0.5
        return Estimate(ratio, ratio - 0.01, ratio + 0.01, 20), 1.0, ratio

    monkeypatch.setattr(module, "quick_ratio", quick_ratio)
    monkeypatch.setattr(module, "benchmark", None)
    monkeypatch.setattr(module, "_SLOW_MS", 0.0)
    found = advise(given, time_limit=60, execution=Execution(threads=1))
    assert models[0] is given
    assert sum(model is given for model in models) == 1
    assert len(set(map(id, originals))) == 1
    timed = [action for action in found.actions if action.latency_ratio is not None]
    assert len(timed) == len(models) - 1 > 3
    assert {action.latency_ratio.value for action in timed} == {0.5}
    assert "0.50 of the time is left" in found.verdict
