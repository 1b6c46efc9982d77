"""Score obs on models: losses against least squares on the inputs of the consumers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph
from scipy.linalg import lstsq

from onnxprune import plan, prune
from onnxprune.analyze import analyze
from onnxprune.calibration.activations import Running
from onnxprune.cholesky import DAMPING
from onnxprune.data import Dataset
from onnxprune.errors import NothingToPrune
from onnxprune.ops.linear import find_linear
from onnxprune.runtime import open_session
from onnxprune.scores import refit
from onnxprune.scores.refit import loss_after_refit
from onnxprune.scores.subject import Subject
from onnxprune.types import FloatArray


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def subject_of(model: ir.Model, x: np.ndarray, **options: object) -> Subject:
    analysis = analyze(model)
    groups = [group for group in analysis.groups if group.frozen is None]
    data = Dataset.from_arrays({"x": x})
    return Subject(analysis.model, analysis.channels, groups, analysis.units, data, **options)  # type: ignore[arg-type]


@dataclass
class Consumer:
    """The rows of one linear node, one part of it, and the columns of each channel."""

    rows: FloatArray
    weights: FloatArray
    columns: Sequence[Sequence[int]]
    variance: float

    def loss(self, gone: Sequence[int]) -> float:
        """Solve for the outputs without some channels: with an intercept, and the ridge of the score.

        Returns the share of the variance of all outputs of the node.
        """
        x = self.rows - self.rows.mean(axis=0)
        live = np.flatnonzero(x.any(axis=0))
        ridge = DAMPING * np.square(x[:, live]).sum() / len(x) / len(live)
        rows = np.vstack([x / np.sqrt(len(x)), np.sqrt(ridge) * np.eye(x.shape[1])])
        targets = rows[:, live] @ self.weights.T[live]
        kept = np.setdiff1d(live, [column for channel in gone for column in self.columns[channel]])
        solution, *_ = lstsq(rows[:, kept], targets)
        return float(np.square(rows[:, kept] @ solution - targets).sum()) / self.variance


def consumer(
    model: ir.Model, node: str, x: np.ndarray, columns: Sequence[Sequence[int]], part: int = 0
) -> Consumer:
    (linear,) = (linear for linear in find_linear(model)[0] if linear.node.outputs[0].name == node)
    value = open_session(model, extra_outputs=[str(linear.x.name)]).run({"x": x})[str(linear.x.name)]
    matrices = linear.matrix(linear.found.tensor.numpy()).astype(np.float64)
    rows = linear.rows(value).astype(np.float64)
    variance = float((rows @ matrices.swapaxes(1, 2)).var(axis=1).sum())
    return Consumer(rows[part], matrices[part], columns, variance)


def greedy(consumers: Sequence[Consumer], size: int) -> FloatArray:
    """Return the running maximum of the losses of the best order, every one solved anew."""
    scores, gone, before, highest = np.zeros(size), [], 0.0, 0.0
    while len(gone) < size:
        left = [channel for channel in range(size) if channel not in gone]
        losses = [sum(each.loss([*gone, channel]) for each in consumers) for channel in left]
        best = int(np.argmin(losses))
        highest = max(highest, losses[best] - before)
        scores[left[best]] = highest
        before = losses[best]
        gone.append(left[best])
    return scores


def scores_of(model: ir.Model, x: np.ndarray) -> dict[str, FloatArray]:
    found = loss_after_refit(subject_of(model, x))
    return {name: values for name, values in found.items() if not isinstance(values, str)}


def blocks(size: int, places: int) -> list[list[int]]:
    return [[channel * places + place for place in range(places)] for channel in range(size)]


def test_hidden_units() -> None:
    model, x = ir.from_proto(small_models.mlp(width=10)), normal(60, 16) + 1
    found = scores_of(model, x)
    for name, node in (("fc1", "fc2"), ("fc2", "y")):
        expected = greedy([consumer(model, node, x, blocks(10, 1))], 10)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-12)


def test_channels_of_a_convolution() -> None:
    model = graph(
        "h = Conv(x, w1)\n r = Relu(h)\n y = Conv<strides=[2,1], pads=[1,0,1,0]>(r, w2, b)",
        constants={"w1": (6, 3, 1, 1), "w2": (4, 6, 3, 2), "b": (4,)},
    )
    x = normal(20, 3, 6, 6)
    (found,) = scores_of(model, x).values()
    np.testing.assert_allclose(found, greedy([consumer(model, "y", x, blocks(6, 6))], 6), rtol=1e-4)


def test_heads() -> None:
    model, x = ir.from_proto(small_models.attention()), normal(40, 6, 32)
    (found,) = (values for values in scores_of(model, x).values() if len(values) == 4)
    expected = greedy([consumer(model, "out_product", x, blocks(4, 8))], 4)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_all_consumers_count() -> None:
    """Two of them read the same value, one another that has the same channels."""
    model = graph(
        """h = MatMul(x, w1) r = Relu(h) a = MatMul(r, w2) b = MatMul(r, w3) s = Sigmoid(h) c = MatMul(s, w4)
        ab = Concat<axis=1>(a, b) y = Concat<axis=1>(ab, c)""",
        inputs="float[N,5] x",
        constants={"w1": (5, 7), "w2": (7, 3), "w3": (7, 2), "w4": (7, 4)},
    )
    x = normal(50, 5)
    (found,) = scores_of(model, x).values()
    consumers = [consumer(model, node, x, blocks(7, 1)) for node in "abc"]
    np.testing.assert_allclose(found, greedy(consumers, 7), rtol=1e-4)


def test_channels_of_a_concatenation_compete_in_their_own_group() -> None:
    model, x = ir.from_proto(small_models.concat_net()), normal(30, 3, 8, 8)
    found = scores_of(model, x)
    for name, first in (("left", 0), ("right", 8)):
        columns = [[first + channel] for channel in range(8)]
        expected = greedy([consumer(model, "mix", x, columns)], 8)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-12)


def test_grouped_convolutions_part_by_part() -> None:
    """A place goes in both groups; each group re-solves its own outputs from its own inputs."""
    model = graph(
        "h = Conv(x, w1)\n r = Relu(h)\n k = Conv<group=2>(r, w2)\n l = Conv(k, w3)\n y = Relu(l)",
        constants={"w1": (12, 3, 1, 1), "w2": (6, 6, 3, 3), "w3": (4, 6, 1, 1)},
    )
    x = normal(30, 3, 6, 6)
    parts = [consumer(model, "k", x, blocks(6, 9), part) for part in range(2)]
    expected = greedy(parts, 6)
    found = scores_of(model, x)
    assert any(values.shape == (6,) and np.allclose(values, expected, rtol=1e-4) for values in found.values())


def test_whole_groups_of_a_convolution_count_behind_it() -> None:
    """Their outputs go with them: nothing has to be re-solved but what sums over these."""
    model = graph(
        "h = Conv(x, w1)\n r = Relu(h)\n k = Conv<group=4>(r, w2)\n l = Conv(k, w3)\n y = Relu(l)",
        constants={"w1": (8, 3, 1, 1), "w2": (4, 2, 1, 1), "w3": (5, 4, 1, 1)},
    )
    x = normal(30, 3, 6, 6)
    found = scores_of(model, x)
    expected = greedy([consumer(model, "l", x, blocks(4, 1))], 4)
    assert any(values.shape == (4,) and np.allclose(values, expected, rtol=1e-4) for values in found.values())


def test_an_intercept_makes_up_for_what_is_constant() -> None:
    model = graph(
        "h = Gemm(x, w1, b)\n r = Relu(h)\n y = Gemm(r, w2)",
        inputs="float[N,5] x",
        constants={
            "w1": np.concatenate([np.zeros((5, 2), np.float32), normal(5, 4)], axis=1),
            "b": np.array([7, -7, 1, 1, 1, 1], np.float32),
            "w2": (6, 3),
        },
    )
    (found,) = scores_of(model, normal(50, 5)).values()
    assert found[:2].tolist() == [0, 0]
    assert (found[2:] > 1e-3).all()


@pytest.mark.parametrize(("matrices", "passes"), [(5.1, 2), (6.1, 2), (7.1, 1)])
def test_a_small_limit_takes_more_passes_for_the_same_scores(
    matrices: float, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stem feeds two 3x3 convolutions and a classifier, each block one more; the largest counts for 3."""
    subject = subject_of(ir.from_proto(small_models.residual_net()), normal(30, 3, 8, 8))
    whole = loss_after_refit(subject)
    calls, done = [], []
    collect = refit.collect_moments
    monkeypatch.setattr(refit, "collect_moments", lambda *a, **k: calls.append(a) or collect(*a, **k))
    limit = int(matrices * 8 * (16 * 9) ** 2)
    split = loss_after_refit(replace(subject, running=Running(limit_bytes=limit), progress=done.append))
    assert len(calls) == passes
    assert whole.keys() == split.keys()
    for name, values in whole.items():
        assert not isinstance(values, str)
        np.testing.assert_allclose(split[name], values, rtol=1e-2)  # type: ignore[arg-type]
    assert done == sorted(done)
    assert done[-1] == 1


def test_groups_beyond_the_limit_say_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = ir.from_proto(small_models.mlp(width=64)), normal(60, 16)
    found = loss_after_refit(subject_of(model, x, running=Running(limit_bytes=4 * 8 * 64**2 - 1)))
    assert set(found.values()) == {
        "score 'obs' needs 131072 bytes for the second moments of its consumers, more than the limit of "
        "131071; raise the limit to that"
    }


def test_what_no_linear_node_sums_over_stays_with_the_reason() -> None:
    model = graph(
        "h = MatMul(x, w)\n r = Relu(h)\n y = ReduceSum(r, axes)",
        inputs="float[N,5] x",
        constants={"w": (5, 8), "axes": [1]},
    )
    with pytest.raises(NothingToPrune, match="score 'obs' finds nothing to measure in its consumers"):
        prune(model, amount=0.5, score="obs", data=Dataset.from_arrays({"x": normal(9, 5)}))


def test_of_two_copies_one_goes_and_the_other_stays() -> None:
    """Energies times weights would keep both."""
    weights = normal(8, 6)
    weights[5] = weights[2]
    last = normal(8, 3, seed=1)
    last[[2, 5]] *= 2
    model = graph(
        "h = Gemm<transB=1>(x, w1)\n r = Tanh(h)\n y = Gemm(r, w2)",
        inputs="float[N,6] x",
        constants={"w1": weights, "w2": last},
    )
    data = Dataset.from_arrays({"x": normal(200, 6)})

    def gone(score: str, amount: float) -> list[int]:
        groups = plan(model, score=score, data=data, amount=amount, align=1).groups
        return next(group.removed.tolist() for group in groups if group.size == 8)

    assert gone("obs", 1 / 8) in ([2], [5])
    assert len({2, 5} & set(gone("obs", 0.5))) == 1
    assert not {2, 5} & set(gone("wanda", 0.5))


def test_scores_do_not_depend_on_the_scale_of_a_consumer() -> None:
    """A layer whose outputs are large is not worth more for that."""
    first, second = normal(6, 8), normal(8, 3, seed=1)

    def scores(scale: float) -> FloatArray:
        model = graph(
            "h = MatMul(x, w1)\n r = Relu(h)\n y = MatMul(r, w2)",
            inputs="float[N,6] x",
            constants={"w1": first, "w2": second * np.float32(scale)},
        )
        (found,) = scores_of(model, normal(50, 6)).values()
        return found

    np.testing.assert_allclose(scores(1000.0), scores(1.0), rtol=1e-4)


def test_wide_consumers_are_named() -> None:
    model = graph("h = Conv(x, w1)\n y = Conv(h, w2)", constants={"w1": (6, 3, 1, 1), "w2": (4, 6, 3, 3)})
    subject = subject_of(model, normal(4, 3, 6, 6))
    (reason,) = refit.too_wide(subject, 53).values()
    assert "54 inputs" in reason
    assert refit.too_wide(subject, 54) == {}
