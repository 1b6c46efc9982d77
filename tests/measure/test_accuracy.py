import json
import sys

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.data import Dataset
from onnxprune.errors import DataError, UsageError
from onnxprune.measure.accuracy import least_sure, validate

CLASSES = 5


def model_of(weight, *, batch="n", outputs=("y",), nodes=()) -> ir.Model:
    """y = x @ weight; more nodes and outputs as asked for."""
    weight = np.asarray(weight, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, len(weight)])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(weight, "w")],
    )
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))


IDENTITY = model_of(np.eye(CLASSES))


def dataset(count=200, wrong=20, seed=0, **more) -> Dataset:
    """Scores whose highest class is the label, except for the last ``wrong`` samples."""
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((count, CLASSES)).astype(np.float32)
    labels = x.argmax(axis=1)
    labels[count - wrong :] = (labels[count - wrong :] + 1) % CLASSES
    return Dataset.from_arrays({"x": x, "label": labels, **more})


class TestAlone:
    def test_top1_with_its_interval(self):
        result = validate(IDENTITY, data=dataset())
        assert result.overall.model.value == 0.9
        assert result.overall.model.count == 200
        assert (result.overall.model.low, result.overall.model.high) == pytest.approx(
            (0.8506, 0.9343), abs=1e-4
        )
        assert result.overall.reference is result.overall.change is result.agreement is None
        assert (result.metric, result.compared_with, result.output) == ("top1", "labels", "y")
        assert result.higher_is_better

    def test_a_broken_model_is_not_right(self):
        rolled = model_of(np.roll(np.eye(CLASSES), 1, axis=1))
        assert validate(rolled, data=dataset(wrong=0)).overall.model.value == 0
        assert (
            validate(model_of(np.zeros((CLASSES, CLASSES))), data=dataset(wrong=0)).overall.model.value < 0.4
        )

    @pytest.mark.parametrize("batch", [1, 7, 32, 1000])
    def test_the_batch_changes_nothing(self, batch):
        assert validate(IDENTITY, data=dataset(), batch=batch) == validate(IDENTITY, data=dataset())

    @pytest.mark.parametrize("fixed", [1, 3, 64])
    def test_a_fixed_batch_is_filled_up(self, fixed):
        fixed_model = model_of(np.eye(CLASSES), batch=fixed)
        result = validate(fixed_model, IDENTITY, data=dataset(), batch=50)
        assert result.overall.model == validate(IDENTITY, data=dataset()).overall.model
        assert result.agreement.largest_difference == 0

    def test_mse_and_cosine_with_labels_of_the_outputs_shape(self):
        x = dataset().arrays["x"]
        data = Dataset.from_arrays({"x": x, "label": 3 * x})
        result = validate(IDENTITY, data=data, metric="mse")
        assert result.overall.model.value == pytest.approx(4 * (x.astype(float) ** 2).mean(), rel=1e-6)
        assert result.overall.model.low < result.overall.model.value < result.overall.model.high
        assert result.higher_is_better is False
        assert result.near_boundary is None
        assert validate(IDENTITY, data=data, metric="cosine").overall.model.value == pytest.approx(1)

    def test_change_of_an_error(self):
        x = dataset().arrays["x"]
        data = Dataset.from_arrays({"x": x, "label": x})
        change = validate(model_of(2 * np.eye(CLASSES)), IDENTITY, data=data, metric="mse").overall.change
        assert change.value == pytest.approx((x.astype(float) ** 2).mean(), rel=1e-6)
        assert 0 < change.low < change.value < change.high

    def test_progress_ends_at_one(self):
        shares = []
        validate(IDENTITY, data=dataset(), batch=64, progress=shares.append)
        assert shares == [0.32, 0.64, 0.96, 1.0]

    def test_paths(self, tmp_path):
        ir.save(IDENTITY, tmp_path / "m.onnx")
        assert validate(tmp_path / "m.onnx", data=dataset()) == validate(IDENTITY, data=dataset())


class TestParts:
    def test_segments(self):
        segments = np.array(["early"] * 150 + ["late"] * 50)
        result = validate(IDENTITY, data=dataset(segment=segments))
        assert {name: part.model.value for name, part in result.segments.items()} == {
            "early": 1.0,
            "late": 0.6,
        }
        assert result.segments["late"].model.count == 50

    def test_near_the_boundary_is_where_the_reference_is_least_sure(self):
        """A model that forgets everything below a margin fails there, and nowhere else."""
        data = dataset(count=400, wrong=0)
        x = data.arrays["x"]
        top = np.sort(x, axis=1)
        margins = top[:, -1] - top[:, -2]
        hard = np.sort(np.argsort(margins)[:40])
        labels = data.labels.copy()
        labels[hard] = (labels[hard] + 1) % CLASSES
        result = validate(model_of(np.eye(CLASSES)), data=Dataset.from_arrays({"x": x, "label": labels}))
        assert result.overall.model.value == 0.9
        assert result.near_boundary.model.value == 0
        assert result.near_boundary.model.count == 40
        mixed = model_of(np.random.default_rng(1).standard_normal((CLASSES, CLASSES)))
        beside = validate(mixed, IDENTITY, data=Dataset.from_arrays({"x": x, "label": labels}))
        assert beside.near_boundary.reference.value == 0

    @pytest.mark.parametrize(("count", "expected"), [(5, 5), (60, 20), (200, 20), (201, 21), (1000, 100)])
    def test_how_many_are_near(self, count, expected):
        margins = np.random.default_rng(0).random(count)
        chosen = least_sure(margins)
        assert len(chosen) == expected
        assert margins[chosen].max() <= np.sort(margins)[expected - 1]


class TestBesideTheReference:
    def test_change_and_agreement(self):
        changed = np.eye(CLASSES)
        changed[:, 0] = -10  # class 0 is never predicted, though sometimes by nobody else
        data = dataset(wrong=0)
        result = validate(model_of(changed), IDENTITY, data=data)
        assert result.overall.reference.value == 1.0
        assert result.overall.model.value < 1.0
        assert result.overall.change.value == pytest.approx(result.overall.model.value - 1.0)
        assert result.overall.change.high < 0
        assert result.agreement.argmax.value == result.overall.model.value
        assert result.agreement.cosine.value < 0.9
        assert result.agreement.largest_difference > 1
        json.dumps(result.as_dict())

    def test_the_same_model_agrees_wholly(self):
        result = validate(IDENTITY, model_of(np.eye(CLASSES)), data=dataset())
        assert result.agreement.argmax.value == 1
        assert result.agreement.cosine.value == pytest.approx(1)
        assert (result.agreement.mse.value, result.agreement.largest_difference) == (0, 0)
        assert result.overall.change.value == 0

    @pytest.mark.parametrize(("metric", "same"), [("agreement", 1.0), ("mse", 0.0), ("cosine", 1.0)])
    def test_metrics_that_compare_with_it_need_no_labels(self, metric, same):
        data = Dataset.from_arrays({"x": dataset().arrays["x"]})
        result = validate(IDENTITY, model_of(np.eye(CLASSES)), data=data, metric=metric)
        assert result.overall.model.value == pytest.approx(same)
        assert result.compared_with == "reference"
        assert result.overall.reference is None
        other = validate(model_of(-np.eye(CLASSES)), IDENTITY, data=data, metric=metric)
        assert other.overall.model.value != pytest.approx(same, abs=0.5)

    def test_different_shapes(self):
        with pytest.raises(DataError, match=r"disagree on the shape of output 'y': \[32, 5\] and \[32, 4\]"):
            validate(IDENTITY, model_of(np.eye(CLASSES)[:, :4]), data=dataset())


class TestOutputs:
    def test_another_output(self):
        flipped = model_of(
            np.eye(CLASSES), outputs=("y", "negative"), nodes=[helper.make_node("Neg", ["y"], ["negative"])]
        )
        data = dataset(wrong=0)
        assert validate(flipped, data=data).overall.model.value == 1
        assert validate(flipped, data=data, output="negative").overall.model.value == 0
        with pytest.raises(UsageError, match=r"the model has no output 'negativ' .did you mean 'negative'"):
            validate(flipped, data=data, output="negativ")
        with pytest.raises(UsageError, match="the reference has no output 'negative'"):
            validate(flipped, IDENTITY, data=data, output="negative")

    def test_an_output_that_is_no_batch(self):
        total = model_of(
            np.eye(CLASSES),
            outputs=("sum",),
            nodes=[helper.make_node("ReduceSum", ["y"], ["sum"], keepdims=0)],
        )
        with pytest.raises(DataError, match="first axis of output 'sum' is not the batch"):
            validate(total, data=dataset())

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_outputs_that_are_not_finite(self, bad):
        """A comparison with NaN is false, so without the check such a model would have an accuracy."""
        weight = np.eye(CLASSES)
        weight[2, 2] = bad
        with pytest.raises(DataError, match="model: output 'y' of sample 0 holds NaN or infinity"):
            validate(model_of(weight), data=dataset())
        with pytest.raises(DataError, match="reference: output 'y'"):
            validate(IDENTITY, model_of(weight), data=dataset())

    def test_the_index_of_the_sample_counts_over_batches(self):
        reciprocal = model_of(
            np.eye(CLASSES), outputs=("r",), nodes=[helper.make_node("Reciprocal", ["y"], ["r"])]
        )
        x = np.ones((100, CLASSES), np.float32)
        x[77, 3] = 0
        data = Dataset.from_arrays({"x": x, "label": np.zeros(100, int)})
        with pytest.raises(DataError, match="of sample 77 holds"):
            validate(reciprocal, data=data)


class TestMisuse:
    @pytest.mark.parametrize("metric", ["top1", "top3"])
    def test_no_labels(self, metric):
        with pytest.raises(DataError, match="needs labels"):
            validate(IDENTITY, data=Dataset.from_arrays({"x": dataset().arrays["x"]}), metric=metric)

    @pytest.mark.parametrize(
        ("metric", "match"),
        [
            ("agreement", "compares with a reference"),
            ("mse", r"labels of the output's shape \[32, 5\], or a ref"),
        ],
    )
    def test_no_reference(self, metric, match):
        with pytest.raises(UsageError, match=match):
            validate(IDENTITY, data=dataset(), metric=metric)

    def test_data_that_does_not_fit(self):
        with pytest.raises(DataError, match="the model takes"):
            validate(model_of(np.eye(4)), data=dataset())

    def test_batch_size(self):
        with pytest.raises(UsageError, match="batch must be positive"):
            validate(IDENTITY, data=dataset(), batch=0)


class TestUserMetric:
    @pytest.fixture(autouse=True)
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "users_own_metric.py").write_text(
            "import numpy as np\n"
            "def hits(outputs, labels): return outputs['y'].argmax(axis=1) == labels\n"
            "def share(outputs, labels): return float(hits(outputs, labels).mean())\n"
            "def errors(outputs, labels): return np.abs(outputs['y']).sum(axis=1)\n"
            "def names(outputs, labels): return len(outputs)\n"
            "def missing(outputs, labels): return float('nan')\n"
            "def missing_in_part(outputs, labels): return 1.0 if len(labels) > 150 else float('nan')\n"
            "def missing_one(outputs, labels): v = np.ones(len(labels)); v[3] = np.nan; return v\n"
            "def wrong_size(outputs, labels): return np.ones(7)\n"
            "def text(outputs, labels): return 'good'\n"
            "def fails(outputs, labels): return outputs['z']\n"
        )
        monkeypatch.chdir(tmp_path)
        yield
        sys.modules.pop("users_own_metric", None)

    def run(self, function, reference=None, **more):
        return validate(
            IDENTITY, reference, data=dataset(**more), metric=f"users_own_metric:{function}", batch=64
        )

    def test_one_figure_per_sample(self):
        result, own = self.run("hits"), validate(IDENTITY, data=dataset())
        assert (result.overall, result.near_boundary) == (own.overall, own.near_boundary)
        assert result.higher_is_better is None

    def test_one_figure_for_all(self):
        segments = np.array(["early"] * 150 + ["late"] * 50)
        result = self.run("share", model_of(-np.eye(CLASSES)), segment=segments)
        assert result.overall.model.value == 0.9
        assert result.overall.model.low < 0.9 < result.overall.model.high
        assert result.overall.reference.value < 0.2
        assert result.overall.change.low > 0
        assert result.segments["late"].model.value == pytest.approx(0.6)
        assert result.near_boundary is not None
        json.dumps(result.as_dict())

    def test_figures_that_are_no_shares_are_bootstrapped(self):
        estimate = self.run("errors").overall.model
        assert estimate.value == pytest.approx(np.abs(dataset().arrays["x"]).sum(axis=1).mean(), rel=1e-6)
        assert estimate.low < estimate.value < estimate.high

    def test_it_sees_all_outputs(self):
        two = model_of(np.eye(CLASSES), outputs=("y", "z"), nodes=[helper.make_node("Neg", ["y"], ["z"])])
        result = validate(two, data=dataset(), metric="users_own_metric:names")
        assert result.overall.model.value == 2

    @pytest.mark.parametrize(
        ("function", "match"),
        [
            ("missing", "returned nan for 200 of all samples"),
            ("missing_in_part", "returned nan for 20 of samples near the boundary"),
            ("missing_one", "model: the metric of sample 3 is nan"),
            ("wrong_size", r"returned \[7\] for 200 samples"),
            ("text", "which is no number"),
            ("fails", "users_own_metric:fails: raised KeyError"),
        ],
    )
    def test_what_it_may_not_return(self, function, match):
        with pytest.raises(DataError, match=match) as caught:
            self.run(function)
        assert "\n" not in str(caught.value)
