"""Moments that several make add up to the same bits."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import scipy
import small_models

import onnxprune
from onnxprune.calibration import moment_shards
from onnxprune.calibration.moments import SHARDS, collect_moments
from onnxprune.data import Dataset
from onnxprune.ops.linear import find_linear
from onnxprune.workers import ALONE, Workers

SAMPLES = 50


def case(name: str) -> tuple[ir.Model, Dataset]:
    model = ir.from_proto(getattr(small_models, name)())
    (value,) = model.graph.inputs
    shape = [SAMPLES, *(int(size) for size in value.shape[1:])]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return model, Dataset.from_arrays({str(value.name): x})


def collected(model, data, workers, **options):
    found = collect_moments(model, find_linear(model)[0], data, batch=4, workers=workers, **options)
    return sorted(found, key=lambda each: each[0])


def check_same(found, wanted):
    assert [number for number, _ in found] == [number for number, _ in wanted]
    for (_, ours), (_, theirs) in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours.second, theirs.second)
        np.testing.assert_array_equal(ours.first, theirs.first)
        assert ours.count == theirs.count


@pytest.mark.parametrize("name", ["residual_net", "attention"])
@pytest.mark.parametrize("options", [{}, {"limit_bytes": 600_000}, {"max_rows": 100}])
def test_two_workers_add_up_to_what_one_process_does(two_workers, name, options):
    model, data = case(name)
    alone = collected(model, data, ALONE, **options)
    check_same(collected(model, data, Workers(scheduler=two_workers.address), **options), alone)


@pytest.mark.long
@pytest.mark.parametrize("jobs", [2, 3])
def test_so_do_processes_of_this_machine(jobs):
    model, data = case("residual_net")
    check_same(collected(model, data, Workers(jobs)), collected(model, data, ALONE))


@pytest.mark.parametrize("order", [range(SHARDS), range(SHARDS)[::-1], (3, 0, 2, 7, 1, 4, 6, 5)])
def test_shards_may_come_in_any_order(monkeypatch, order):
    model, data = case("residual_net")

    class Crew:
        def __init__(self, job):
            self.job = job

        def __enter__(self):
            arguments = [each.folder if hasattr(each, "folder") else each for each in self.job.arguments]
            self.run_one = self.job.build(*arguments)
            return self

        def __exit__(self, *_):
            pass

        def run(self, tasks):
            yield from ((place, self.run_one(tasks[place])) for place in order if place < len(tasks))

    monkeypatch.setattr(moment_shards, "hire", lambda _workers, job, _count: Crew(job))
    told = []
    found = collected(model, data, Workers(2), progress=told.append)
    check_same(found, collected(model, data, ALONE))
    assert told == sorted(told)
    assert told[-1] == 1


def test_threads_of_the_machine_do_not_matter(monkeypatch):
    """BLAS adds up otherwise with more of them, so their number is an option's, not the machine's."""
    model, data = case("residual_net")
    seen = []
    ssyrk = scipy.linalg.blas.ssyrk

    def spy(*arguments, **options):
        from threadpoolctl import threadpool_info

        seen.append({each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"})
        return ssyrk(*arguments, **options)

    monkeypatch.setattr(scipy.linalg.blas, "ssyrk", spy)
    collected(model, data, ALONE)
    assert all(threads == {1} for threads in seen)
    assert seen


def test_a_score_that_uses_them_prunes_the_same(two_workers, tmp_path):
    model, data = case("residual_net")
    options = {"pattern": "2:4", "score": "obs", "data": data, "batch": 4}
    alone = onnxprune.prune(model, **options)
    shared = onnxprune.prune(model, scheduler=two_workers.address, **options)
    for name, value in alone.model.graph.initializers.items():
        np.testing.assert_array_equal(
            value.const_value.numpy(), shared.model.graph.initializers[name].const_value.numpy()
        )
