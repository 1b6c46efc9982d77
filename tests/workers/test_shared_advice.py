"""Candidates tried by others are the same, with the same models; only their times are measured anew."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import small_models

import onnxprune
from onnxprune.data import Dataset


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return ir.from_proto(small_models.mlp())


def data_for(model) -> Dataset:
    (value,) = model.graph.inputs
    generator = np.random.default_rng(0)
    x = generator.standard_normal([48, *(int(size) for size in value.shape[1:])]).astype(np.float32)
    classes = int(model.graph.outputs[0].shape[-1])
    return Dataset.from_arrays({str(value.name): x, "label": generator.integers(0, classes, 48)})


def known(advice) -> dict[str, tuple[object, ...]]:
    """Return what does not depend on times, by action."""
    return {
        action.title: (
            action.size_ratio,
            getattr(action.accuracy, "value", None) and action.accuracy.value.value,
        )
        for action in advice.actions
    }


@pytest.mark.long
def test_workers_of_a_cluster_find_the_same(two_workers, model):
    told = []
    data = data_for(model)
    there = onnxprune.advise(
        model, data=data, time_limit=60, scheduler=two_workers.address, progress=told.append
    )
    alone = onnxprune.advise(model, data=data, time_limit=60)
    names = [action.title for action in alone.actions]
    assert sorted(names) == sorted(action.title for action in there.actions)
    assert len(names) > 3
    here, elsewhere = known(alone), known(there)
    judged = [name for name in here if None not in (*here[name], *elsewhere[name])]  # what may be faster is
    assert [here[name] for name in judged] == [elsewhere[name] for name in judged]
    assert any(line.startswith("tried 1 of ") for line in told)


@pytest.mark.long
def test_so_do_processes_of_this_machine(model):
    advice = onnxprune.advise(model, time_limit=60, jobs=2)
    assert {action.title for action in advice.actions} == {
        action.title for action in onnxprune.advise(model, time_limit=60).actions
    }
