"""What the machine can do, from the best of a few runs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.advice import machine
from onnxprune.advice.machine import measure_machine
from onnxprune.runtime import open_session


def test_figures_are_work_over_the_best_time(monkeypatch):
    seconds = {"MatMul": 0.008, "Neg": 0.004}
    clock = [0.0]
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clock[0])

    def open_model(model):
        nodes = list(model.graph)
        takes = seconds[nodes[0].op_type] if len(nodes) == 1 else 40e-6
        slow = [3.0]  # the first runs are disturbed

        def run(feeds):
            assert feeds["x"].dtype == np.float32
            clock[0] += takes * slow[0]
            slow[0] = max(1.0, slow[0] - 1)

        return run

    found = measure_machine(open_model)
    assert found.gmacs_per_second == pytest.approx(384 * 1024 * 1024 / 0.008 / 1e9)
    assert found.gbytes_per_second == pytest.approx(2 * 4 * 2**24 / 0.004 / 1e9)
    assert found.call_microseconds == pytest.approx(0.2)


@pytest.mark.parametrize(
    "build", [lambda: machine._product(np.ones((1024, 1024), np.float32)), lambda: machine._chain(3, 1)]
)
def test_its_models_run(build):
    model = build()
    session = open_session(model)
    (info,) = session.inputs.values()
    (y,) = session.run({"x": np.ones(info.shape, np.float32)}).values()
    assert y.flat[0] == (1024 if y.ndim == 2 else -1)
