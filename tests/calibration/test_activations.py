"""Inner values over a data set: the right ones, each once, within the limit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
import small_models
from cutting import graph

from onnxprune.calibration import relay
from onnxprune.calibration.activations import each_batch, left_out, mean_squares
from onnxprune.calibration.tapping import Footprint
from onnxprune.data import Dataset
from onnxprune.errors import DataError, LimitMissed, UsageError
from onnxprune.runtime import Session, open_session

NAMES = ("fc1", "fc1_relu", "fc2", "fc2_relu", "y")


def mlp() -> ir.Model:
    return ir.from_proto(small_models.mlp())


def samples(count: int = 70, **more: np.ndarray) -> Dataset:
    x = np.random.default_rng(0).standard_normal((count, 16)).astype(np.float32)
    return Dataset.from_arrays({"x": x, **more}, "calib.npz")


def collected(
    model: ir.Model, bundles: Sequence[Sequence[str]], data: Dataset, **options: int
) -> list[list[np.ndarray]]:
    """All batches of each value, one after the other; checks that every sample comes once, in order."""
    parts: list[list[list[np.ndarray]]] = [[[] for _ in bundle] for bundle in bundles]
    seen = [0] * len(bundles)
    for tapped in each_batch(model, bundles, data, **options):
        assert tapped.samples.start == seen[tapped.bundle]
        seen[tapped.bundle] = tapped.samples.stop
        for place, array in enumerate(tapped.values):
            parts[tapped.bundle][place].append(array)
    return [[np.concatenate(arrays) for arrays in bundle] for bundle in parts]


def in_one_run(data: Dataset) -> dict[str, np.ndarray]:
    inner = open_session(mlp(), extra_outputs=NAMES).run(dict(data.arrays))
    return {**inner, "x": data.arrays["x"]}


@pytest.mark.parametrize("batch", [1, 7, 32, 1000])
def test_the_values_are_those_of_the_model(batch):
    data = samples()
    expected = in_one_run(data)
    bundles = [("fc1", "y"), ("x",), ("fc2_relu",), ("fc1", "fc2")]
    for bundle, arrays in zip(bundles, collected(mlp(), bundles, data, batch=batch), strict=True):
        for name, array in zip(bundle, arrays, strict=True):
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-6)


#: 144, 128 and 128 bytes for each of 70 samples
LIMITED = [("fc1", "y"), ("fc2",), ("fc2_relu",)]


@pytest.mark.parametrize(
    ("limit_bytes", "runs"),
    [(32 * 400, 3), (32 * 399, 6), (32 * 256, 6), (32 * 255, 9), (32 * 143, 9), (1000, 36), (144, 210)],
)
def test_a_limit_splits_values_then_batches(monkeypatch, limit_bytes, runs):
    data = samples()
    expected = collected(mlp(), LIMITED, data)
    sizes = []
    run = Session.run_in_place

    def weighed(self, feeds):
        results = run(self, feeds)
        sizes.append(sum(array.nbytes for array in results.values()))
        return results

    monkeypatch.setattr(Session, "run_in_place", weighed)
    monkeypatch.setattr(Footprint, "alive", lambda *_: 0)
    found = collected(mlp(), LIMITED, data, limit_bytes=limit_bytes)
    assert max(sizes) <= limit_bytes
    assert len(sizes) == runs
    for before, after in zip(expected, found, strict=True):
        for a, b in zip(before, after, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_batches_are_smaller_where_the_model_itself_needs_more_than_half():
    """Between two nodes of 32 numbers each, a sample takes 256 bytes; its result takes 16."""
    data = samples(32)
    limits = (512 * 32, 512 * 32 - 1, 512 * 3, 512, 100)
    runs = [len(list(each_batch(mlp(), [("y",)], data, limit_bytes=limit))) for limit in limits]
    assert runs == [1, 2, 11, 32, 32]
    with pytest.raises(LimitMissed, match=r"'y' takes 16 bytes in a batch of 1, beside 15 .* raise it to 32"):
        each_batch(mlp(), [("y",)], data, limit_bytes=30)
    list(each_batch(mlp(), [("y",)], data, limit_bytes=32))


def test_a_value_that_bundles_share_counts_once(monkeypatch):
    monkeypatch.setattr(Footprint, "alive", lambda *_: 0)
    shares = []
    list(
        each_batch(
            mlp(), [("fc1", "y"), ("fc1",), ("y",)], samples(32), limit_bytes=32 * 144, progress=shares.append
        )
    )
    assert shares == [1.0]


def test_a_single_sample_beyond_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(Footprint, "alive", lambda *_: 0)
    with pytest.raises(LimitMissed, match=r"'fc1' takes 144 bytes in a batch of 1, .* limit of 143"):
        each_batch(mlp(), [("fc1", "y")], samples(), limit_bytes=143)


def fixed(batch: int) -> ir.Model:
    model = mlp()
    model.graph.inputs[0].shape = ir.Shape([batch, 16])
    return model


def test_a_fixed_batch_gets_whole_batches():
    data = samples()
    assert left_out(fixed(32), data) == 6
    assert left_out(mlp(), data) == 0
    ((y,),) = collected(fixed(32), [("y",)], data)
    np.testing.assert_allclose(y, in_one_run(data)["y"][:64], rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match=r"calib.npz: 70 samples, and the model takes batches of 71"):
        each_batch(fixed(71), [("y",)], data)
    with pytest.raises(LimitMissed):
        each_batch(fixed(32), [("y",)], data, limit_bytes=100)


def test_labels_and_segments_are_not_fed():
    data = samples(label=np.zeros(70, np.int64), segment=np.array(["a", "b"] * 35))
    assert len(list(each_batch(mlp(), [("y",)], data, batch=70))) == 1


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE])
def test_other_floats_are_computed_in_float32(dtype):
    proto = small_models.mlp()
    model = ir.from_proto(proto)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.dtype = dtype
        if value.const_value is not None:
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype.numpy()), name=value.name)
    data = samples()
    same = Dataset.from_arrays({"x": data.arrays["x"].astype(dtype.numpy())})
    ((y,),) = collected(model, [("y",)], same)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, in_one_run(data)["y"], rtol=0.05, atol=0.05)
    with pytest.raises(DataError, match="'x' is float32, the model takes"):
        each_batch(model, [("y",)], data)


def test_what_comes_behind_is_not_computed():
    """The last node fails when it runs; a value before it can be tapped all the same."""
    model = graph(
        "h = Relu(x)\n r = Reshape(h, s)\n y = Gather(r, k)",
        inputs="float[N,16] x",
        outputs="float[M] y",
        constants={"s": [-1], "k": [10**6]},
    )
    ((h,),) = collected(model, [("h",)], samples())
    np.testing.assert_array_equal(h, np.maximum(samples().arrays["x"], 0))


def test_the_model_is_not_changed():
    model = mlp()
    before = ir.to_proto(model).SerializeToString()
    list(each_batch(model, [("fc1",)], samples()))
    mean_squares(model, [("fc1", (0,))], samples())
    assert ir.to_proto(model).SerializeToString() == before


def test_refusals():
    two_inputs = graph("y = Add(x, z)", inputs="float[N,16] x, float[N,16] z")
    with pytest.raises(UsageError, match="no value 'fc9'"):
        each_batch(mlp(), [("fc9",)], samples())
    with pytest.raises(UsageError, match="no value 'fc9'"):
        mean_squares(mlp(), [("fc9", (0,))], samples())
    with pytest.raises(UsageError, match="batch must be positive, not 0"):
        each_batch(mlp(), [("y",)], samples(), batch=0)
    with pytest.raises(DataError, match="'z' is no input of the model"):
        each_batch(mlp(), [("y",)], samples(z=np.zeros(70, np.float32)))
    with pytest.raises(DataError, match="no array for input 'z'"):
        each_batch(two_inputs, [("y",)], samples())


def test_an_empty_list_needs_no_run():
    assert list(each_batch(mlp(), [], samples())) == []
    assert mean_squares(mlp(), [], samples()) == []


class TestMeanSquares:
    def test_early_values_are_tapped_early(self, monkeypatch):
        """ONNX Runtime begins with the ends that were added last; 1 GB less at a batch of ResNet-50."""
        opened = []

        def spy(model, **options):
            opened.append(model)
            return open_session(model, **options)

        monkeypatch.setattr(relay, "open_session", spy)
        mean_squares(mlp(), [("y", (0,)), ("fc1", (0,)), ("fc2", (0,))], samples())
        model = opened[-1]
        runs = [each for each in opened if any(node.op_type == "Mul" for node in each.graph)]
        assert len(runs) == 1  # one pass
        order = [node.inputs[0].name for node in model.graph if node.op_type == "Mul"]
        assert order == ["y", "fc2", "fc1"]
        first = model.graph.outputs[-1].producer().inputs[0]
        assert first.producer().inputs[0].name == "fc1"

    @pytest.mark.parametrize("opset", [12, 13, 17])
    @pytest.mark.parametrize("batch", [1, 7, 70])
    def test_the_formula(self, opset, batch):
        model = graph("y = Relu(x)", inputs="float[N,3,4,5] x", opset=opset)
        x = np.random.default_rng(1).standard_normal((70, 3, 4, 5)).astype(np.float32)
        data = Dataset.from_arrays({"x": x})
        squares = np.maximum(x.astype(np.float64), 0) ** 2
        wanted = [("y", (0, 2, 3)), ("x", (0, 1, 2, 3)), ("y", (0, 3)), ("y", (0, 2, 3))]
        found = mean_squares(model, wanted, data, batch=batch)
        expected = [squares.mean((0, 2, 3)), (x**2).mean(), squares.mean((0, 3)), squares.mean((0, 2, 3))]
        for result, reference in zip(found, expected, strict=True):
            assert result.dtype == np.float64
            assert result.shape == reference.shape
            np.testing.assert_allclose(result, reference, rtol=1e-5)

    def test_no_axes_are_squares_alone(self):
        model = graph("w2 = Relu(w)\n y = MatMul(x, w2)", inputs="float[N,16] x", constants={"w": (16, 2)})
        (squares,) = mean_squares(model, [("w2", ())], samples(), batch=7)
        weights = model.graph.initializers["w"].const_value.numpy()
        np.testing.assert_allclose(squares, np.maximum(weights, 0) ** 2, rtol=1e-6)

    def test_many_elements_keep_their_digits(self):
        model = graph("y = Relu(x)", inputs="float[N,2,512,512] x")
        x = np.full((2, 2, 512, 512), 1.1, np.float32)
        (means,) = mean_squares(model, [("y", (0, 2, 3))], Dataset.from_arrays({"x": x}))
        np.testing.assert_allclose(means, np.float64(np.float32(1.1)) ** 2, rtol=2e-6)
