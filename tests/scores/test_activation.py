"""Scores from data against energies that are computed by hand, value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph

from onnxprune import plan, prune
from onnxprune.analyze import analyze
from onnxprune.calibration.activations import Running
from onnxprune.data import Dataset
from onnxprune.errors import DataError, NothingToPrune, UsageError
from onnxprune.runtime import open_session
from onnxprune.scores.on_data import DATA_SCORERS, score_on_data
from onnxprune.scores.subject import Subject

Arrays = Mapping[str, np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scores_of(
    model: ir.Model, x: np.ndarray, scorer: str = "activation", batch: int = 32
) -> dict[str, np.ndarray]:
    analysis = analyze(model)
    groups = [group for group in analysis.groups if group.frozen is None]
    data = Dataset.from_arrays({"x": x}, "calib.npz")
    subject = Subject(analysis.model, analysis.channels, groups, analysis.units, data, Running(batch))
    found = score_on_data(subject, scorer)
    assert (found.scorer, found.data_digest) == (scorer, data.digest)
    return dict(found.channels)


def inner(model: ir.Model, x: np.ndarray, *names: str) -> list[np.ndarray]:
    found = open_session(model, extra_outputs=names).run({"x": x})
    return [found[name].astype(np.float64) for name in names]


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {
        name: value.const_value.numpy().astype(np.float64)  # type: ignore[union-attr]
        for name, value in model.graph.initializers.items()
    }


def residual_consumers(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """The stem's channels flow through both residual sums, into five consumers."""
    names = ("stem_bn_relu", "block1_sum_relu", "pool")
    stem, block1, pool = inner(model, x, *names)
    return (stem**2).mean((0, 2, 3)) + (block1**2).mean((0, 2, 3)) + (pool**2).mean((0, 2, 3))


class TestActivation:
    @pytest.mark.parametrize("batch", [1, 7, 32, 50])
    def test_hidden_units(self, batch):
        model, x = ir.from_proto(small_models.mlp()), normal(50, 16)
        found = scores_of(model, x, batch=batch)
        for name, value in zip(("fc1", "fc2"), inner(model, x, "fc1_relu", "fc2_relu"), strict=True):
            np.testing.assert_allclose(found[name], (value**2).mean(0), rtol=1e-5)

    def test_every_consumer_counts(self):
        model, x = ir.from_proto(small_models.residual_net()), normal(9, 3, 8, 8)
        np.testing.assert_allclose(scores_of(model, x)["stem"], residual_consumers(model, x), rtol=1e-5)

    def test_a_head_sums_over_its_places(self):
        model, x = ir.from_proto(small_models.attention()), normal(9, 6, 32)
        found = scores_of(model, x)
        (joined, hidden) = inner(model, x, "joined", "up_relu")
        energies = (joined**2).mean((0, 1))
        heads = [name for name, values in found.items() if len(values) == 4]
        assert len(heads) == 1
        np.testing.assert_allclose(found[heads[0]], energies.reshape(4, 8).sum(1), rtol=1e-5)
        np.testing.assert_allclose(found["up"], (hidden**2).mean((0, 1)), rtol=1e-5)

    def test_channels_of_a_convolution_behind_a_depthwise_one(self):
        model, x = ir.from_proto(small_models.depthwise_net()), normal(9, 3, 8, 8)
        (value,) = inner(model, x, "depthwise_relu")
        np.testing.assert_allclose(scores_of(model, x)["expand"], (value**2).mean((0, 2, 3)), rtol=1e-5)

    def test_what_is_added_to_a_sum_is_no_part_of_it(self):
        """Both inputs of the second Gemm have channels of one group; only one of them is summed over."""
        model = graph(
            "h = Gemm(x, w1)\n r = Relu(h)\n k = Gemm(r, w2, h)\n y = Gemm(k, w3)",
            inputs="float[N,5] x",
            constants={"w1": (5, 8), "w2": (8, 8), "w3": (8, 3)},
        )
        x = normal(40, 5)
        r, k = inner(model, x, "r", "k")
        (found,) = scores_of(model, x).values()
        np.testing.assert_allclose(found, (r**2).mean(0) + (k**2).mean(0), rtol=1e-5)

    def test_a_plain_sum_counts(self):
        model = graph(
            "h = MatMul(x, w)\n r = Relu(h)\n y = ReduceSum(r, axes)",
            inputs="float[N,5] x",
            constants={"w": (5, 8), "axes": [1]},
        )
        x = normal(40, 5)
        (r,) = inner(model, x, "r")
        for scorer, expected in (("activation", (r**2).mean(0)), ("wanda", np.sqrt((r**2).mean(0)))):
            (found,) = scores_of(model, x, scorer).values()
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def grouped(model: ir.Model, x: np.ndarray) -> np.ndarray:
    """Two groups of four inputs and three outputs each, weight by weight."""
    (value,) = inner(model, x, "r")
    weights = weights_of(model)["w2"]
    total = np.zeros(8)
    for output in range(6):
        for place in range(4):
            channel = output // 3 * 4 + place
            total[channel] += (value[:, channel] ** 2).mean() * (weights[output, place] ** 2).sum()
    return total


LINEAR = {
    "plain": ("y = MatMul(r, w2)", (8, 3), 0),
    "transposed": ("t = Transpose<perm=[1,0]>(w2)\n y = MatMul(r, t)", (3, 8), 1),
    "scaled": ("t = Mul(w2, two)\n y = MatMul(r, t)", (8, 3), 0),
    "gemm": ("y = Gemm<transB=1>(r, w2)", (3, 8), 1),
}


class TestWanda:
    @pytest.mark.parametrize("spelling", LINEAR)
    def test_energies_times_weights(self, spelling):
        last, shape, axis = LINEAR[spelling]
        model = graph(
            f"h = MatMul(x, w1)\n r = Relu(h)\n {last}",
            inputs="float[N,5] x",
            constants={"w1": (5, 8), "w2": shape, "two": np.array(2, np.float32)},
        )
        x = normal(40, 5)
        (r,) = inner(model, x, "r")
        weights = weights_of(model)["w2"] * (2 if spelling == "scaled" else 1)
        (found,) = scores_of(model, x, "wanda", batch=9).values()
        expected = np.sqrt((r**2).mean(0) * (weights**2).sum(1 - axis))
        np.testing.assert_allclose(found, expected, rtol=1e-5)

    def test_products_with_what_a_branch_computes_are_left_out(self):
        """The values of a body can't be tapped: the group has no figures, and stays."""
        model = graph(
            """h = MatMul(x, w1) r = Relu(h) q = MatMul(x, w2) big = ReduceMax<keepdims=0>(x)
            flag = Greater(big, zero)
            y = If(flag) <then_branch = a () => (float[N,4,4] o) {
                               s = Relu(q) t = Transpose<perm=[0,2,1]>(s) o = MatMul(r, t) },
                          else_branch = b () => (float[N,4,4] o) {
                               u = Transpose<perm=[0,2,1]>(q) o = MatMul(r, u) }>""",
            inputs="float[N,4,5] x",
            constants={"w1": (5, 8), "w2": (5, 8), "zero": np.float32(0)},
        )
        assert scores_of(model, normal(9, 4, 5), "wanda") == {}
        (energy,) = scores_of(model, normal(9, 4, 5)).values()
        assert energy.shape == (8,)

    def test_convolutions(self):
        model, x = ir.from_proto(small_models.concat_net()), normal(9, 3, 8, 8)
        found = scores_of(model, x, "wanda")
        left, right = inner(model, x, "left_relu", "right_relu")
        weights = weights_of(model)["mix.weight"]
        for name, value, part in (("left", left, weights[:, :8]), ("right", right, weights[:, 8:])):
            expected = np.sqrt((value**2).mean((0, 2, 3)) * (part**2).sum((0, 2, 3)))
            np.testing.assert_allclose(found[name], expected, rtol=1e-5)

    def test_a_grouped_convolution(self):
        """Its groups sum over parts of their own; places in both groups go together."""
        model = graph(
            "h = Conv(x, w1)\n r = Relu(h)\n k = Conv<group=2>(r, w2)\n l = Conv(k, w3)\n y = Relu(l)",
            constants={"w1": (8, 3, 1, 1), "w2": (6, 4, 3, 3), "w3": (4, 6, 1, 1)},
        )
        x = normal(9, 3, 6, 6)
        by_position = grouped(model, x)
        found = scores_of(model, x, "wanda")
        sums = {2: by_position.reshape(2, 4).sum(1), 4: by_position.reshape(2, 4).sum(0)}
        matching = [
            name
            for name, values in found.items()
            if len(values) in sums and np.allclose(values, np.sqrt(sums[len(values)]), rtol=1e-5)
        ]
        assert matching, found

    def test_heads(self):
        model, x = ir.from_proto(small_models.attention()), normal(9, 6, 32)
        (joined,) = inner(model, x, "joined")
        (weights,) = (w for name, w in weights_of(model).items() if name.startswith("out") and w.ndim == 2)
        products = (joined**2).mean((0, 1)) * (weights**2).sum(1)
        (found,) = (values for values in scores_of(model, x, "wanda").values() if len(values) == 4)
        np.testing.assert_allclose(found, np.sqrt(products.reshape(4, 8).sum(1)), rtol=1e-5)

    def test_the_outputs_of_its_weights_decide_between_equally_active_channels(self):
        w2 = np.array([[3, 0], [0, 1], [2, 2], [0, 0.5]], np.float32)
        model = graph(
            "h = MatMul(x, w1)\n y = MatMul(h, w2)",
            inputs="float[N,4] x",
            constants={"w1": np.eye(4, dtype=np.float32), "w2": w2},
        )
        (found,) = scores_of(model, np.ones((5, 4), np.float32), "wanda").values()
        np.testing.assert_allclose(found, [3, 1, np.sqrt(8), 0.5])


@pytest.mark.parametrize("scorer", list(DATA_SCORERS))
def test_large_weights_that_never_fire_go_first(scorer: str) -> None:
    """Unit 5 has by far the largest weights, and a bias that keeps it silent on the data."""
    model = ir.from_proto(small_models.mlp())
    tensors = {
        name: model.graph.initializers[name].const_value.numpy().copy()  # type: ignore[union-attr]
        for name in ("fc1.weight", "fc1.bias", "fc2.weight")
    }
    tensors["fc1.weight"][5] *= 50
    tensors["fc1.bias"][5] = -1e4
    tensors["fc2.weight"][:, 5] *= 50
    for name, array in tensors.items():
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    data = Dataset.from_arrays({"x": normal(50, 16)})
    options = {"amount": 1 / 32, "align": 1}
    gone = {
        group.name: group.removed.tolist() for group in plan(model, score=scorer, data=data, **options).groups
    }
    assert gone["fc1"] == [5]
    kept = {group.name: group.removed.tolist() for group in plan(model, score="l2", **options).groups}
    assert kept["fc1"] != [5]


#: Square what a batch says, or look at the first one alone, as their papers do.
BY_BATCH = {"taylor", "snip"}


@pytest.mark.parametrize("scorer", [name for name in DATA_SCORERS if name not in BY_BATCH])
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (small_models.residual_net, (20, 3, 8, 8)),
        (small_models.depthwise_net, (20, 3, 8, 8)),
        (small_models.concat_net, (20, 3, 8, 8)),
        (small_models.attention, (20, 6, 32)),
    ],
)
def test_batches_do_not_matter(scorer: str, make: Callable[[], object], shape: tuple[int, ...]) -> None:
    model, x = ir.from_proto(make()), normal(*shape)  # type: ignore[arg-type]
    whole = scores_of(model, x, scorer, batch=20)
    assert whole
    # covariances are differences of sums in float32, and what is lost is a small part of them
    relative = 2e-2 if scorer == "obs" else 1e-5
    for name, values in scores_of(model, x, scorer, batch=3).items():
        np.testing.assert_allclose(values, whole[name], rtol=relative, atol=1e-6 * whole[name].max())


def test_numbers_that_are_not_finite_name_the_layer() -> None:
    model = graph(
        "h = MatMul(x, w1)\n r = Exp(h)\n [second] y = MatMul(r, w2)",
        inputs="float[N,2] x",
        constants={"w1": np.full((2, 4), 100, np.float32), "w2": (4, 3)},
    )
    with pytest.raises(DataError, match=r"calib.npz: on this data the input of 'second' holds NaN, infinity"):
        scores_of(model, np.ones((3, 2), np.float32))


def test_a_group_without_figures_stays_whole_and_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATA_SCORERS._entries, "activation", lambda _subject: {})
    data = Dataset.from_arrays({"x": normal(5, 16)})
    with pytest.raises(NothingToPrune, match="finds nothing to measure") as caught:
        prune(ir.from_proto(small_models.mlp()), amount=0.5, score="activation", data=data)
    assert len(caught.value.reasons) >= 2


def test_refusals(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = ir.from_proto(small_models.mlp())
    data = Dataset.from_arrays({"x": normal(5, 16)})
    for run in (plan, prune):
        with pytest.raises(UsageError, match=r"score 'wanda' is measured on samples: give --data calib\.npz"):
            run(model, amount=0.5, score="wanda")
        with pytest.raises(UsageError, match=r"unknown score 'wnda' \(did you mean 'wanda'\?\); known: l2,"):
            run(model, amount=0.5, score="wnda", data=data)
        with pytest.raises(UsageError, match="score 'l1' goes by weights alone"):
            run(model, pattern="2:4", score="l1", data=data)
        with pytest.raises(DataError, match="no such file"):
            run(model, amount=0.5, score="wanda", data=tmp_path / "missing.npz")
        with pytest.raises(DataError, match="'z' is no input of the model"):
            run(model, amount=0.5, score="wanda", data=Dataset.from_arrays({"z": normal(5, 16)}))


def test_the_plan_names_its_data_and_what_was_left_out(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = ir.from_proto(small_models.mlp())
    model.graph.inputs[0].shape = ir.Shape([4, 16])
    np.savez(tmp_path / "calib.npz", x=normal(11, 16), label=np.zeros(11))
    result = prune(model, amount=0.5, score="activation", data=tmp_path / "calib.npz")
    assert result.plan.recipe["data"] == str(tmp_path / "calib.npz")
    same = Dataset.from_arrays({"x": normal(11, 16), "label": np.zeros(11)})
    assert result.plan.recipe["data_digest"] == same.digest
    assert [s.reason for s in result.plan.skipped if s.name == str(tmp_path / "calib.npz")] == [
        "the last 3 of 11 samples fill no batch of the model"
    ]
