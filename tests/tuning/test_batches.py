"""The order of samples: each equally often, known from the step alone, and divided among processes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from onnxprune.data import Dataset  # noqa: E402
from onnxprune.errors import UsageError  # noqa: E402
from onnxprune.tuning.batches import Batches, Order, split  # noqa: E402

CPU = torch.device("cpu")


def data_of(samples):
    numbers = np.arange(samples, dtype=np.float32)
    return Dataset.from_arrays({"x": numbers[:, None], "label": np.arange(samples)})


def batches_of(samples, size, **more):
    return Batches(data_of(samples), size, more.pop("accumulate", 1), more.pop("fixed", False), CPU, **more)


def numbers_of(batches):
    return [int(number) for batch in batches for number in batch.labels]


@given(st.integers(1, 30), st.integers(0, 90), st.integers(1, 90), st.integers(0, 5))
def test_a_part_of_the_row_is_the_same_however_it_is_asked_for(samples, start, count, seed):
    whole = Order(samples, seed).at(0, start + count)
    assert Order(samples, seed).at(start, count).tolist() == whole[start:].tolist()


def test_every_pass_holds_every_sample_once_in_another_order():
    row = Order(20, 3).at(0, 60).reshape(3, 20)
    assert (np.sort(row, axis=1) == np.arange(20)).all()
    assert len({tuple(one) for one in row}) == 3
    assert Order(20, 4).at(0, 20).tolist() != row[0].tolist()


def test_batches_have_equal_sizes_and_go_on_from_one_pass_to_the_next():
    batches, order = batches_of(10, 4), Order(10, 0)
    seen = [numbers_of(batches.of_step(order, step)) for step in range(1, 6)]
    assert [len(one) for one in seen] == [4] * 5
    assert sorted(number for one in seen for number in one) == sorted(list(range(10)) * 2)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.booleans(), st.integers(1, 9))
def test_processes_together_have_the_samples_of_one(processes, accumulate, fixed, step):
    accumulate = accumulate * processes if fixed else accumulate
    alone = batches_of(11, 8, accumulate=accumulate, fixed=fixed)
    parts = [
        batches_of(11, 8, accumulate=accumulate, fixed=fixed, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    together = [part.of_step(Order(11, 1), step) for part in parts]
    expected = numbers_of(alone.of_step(Order(11, 1), step))
    assert [number for batches in together for number in numbers_of(batches)] == expected
    sizes = {len(batch.labels) for batches in together for batch in batches}
    assert sizes == {8 if fixed else 8 // processes}
    once = [number for part in parts for b in part.once() for number in b.labels[: b.count].tolist()]
    assert sorted(once) == list(range(11)), "each sample is looked at once, over all processes"


def test_a_fixed_batch_is_filled_up_and_only_real_samples_count():
    last = list(batches_of(10, 4, fixed=True).once())[-1]
    assert (len(last.labels), last.count) == (4, 2)
    assert last.labels[:2].tolist() == [8, 9]


@pytest.mark.parametrize(
    ("size", "fixed", "named"), [(9, False, "batch 9"), (8, True, "accumulate 1 .*batches of 8")]
)
def test_what_can_not_be_divided_is_refused(size, fixed, named):
    with pytest.raises(UsageError, match=named):
        batches_of(20, size, fixed=fixed, rank=0, processes=2)


def test_bfloat16_inputs_keep_their_bits():
    import ml_dtypes

    values = np.array([[1.5], [-3.25]], ml_dtypes.bfloat16)
    batches = Batches(Dataset.from_arrays({"x": values}), 2, 1, False, CPU)
    (batch,) = batches.once()
    assert batch.inputs["x"].dtype == torch.bfloat16
    assert batch.inputs["x"].flatten().tolist() == [1.5, -3.25]


def test_a_split_divides_the_samples_and_depends_on_the_seed():
    data = data_of(50)
    tuned, validated = split(data, 0.2, 0)
    assert (len(tuned), len(validated)) == (40, 10)
    assert sorted([*tuned.labels, *validated.labels]) == list(range(50))
    assert split(data, 0.2, 0)[1].labels.tolist() == validated.labels.tolist()
    assert split(data, 0.2, 1)[1].labels.tolist() != validated.labels.tolist()
    assert [len(part) for part in split(data_of(2), 0.9, 0)] == [1, 1]
