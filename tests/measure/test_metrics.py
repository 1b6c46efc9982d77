import sys

import numpy as np
import pytest

from onnxprune.errors import DataError, UsageError
from onnxprune.measure import metrics
from onnxprune.measure.metrics import UserMetric, find_metric


def value(name, output, target):
    return find_metric(name).per_sample(np.asarray(output), np.asarray(target)).tolist()


SCORES = [[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]


class TestTop:
    def test_top1(self):
        assert value("top1", SCORES, [1, 1, 2]) == [1, 0, 1]

    @pytest.mark.parametrize("name", ["top2", "top-2"])
    def test_top2(self, name):
        assert value(name, SCORES, [0, 1, 0]) == [0, 1, 0]

    def test_five(self):
        scores = np.arange(10.0)[None].repeat(10, axis=0)
        assert value("top5", scores, np.arange(10)) == [0] * 5 + [1] * 5

    def test_equal_scores_are_not_all_right(self):
        """A collapsed model, all of whose scores are equal, is right about class 0 alone."""
        assert value("top1", np.zeros((4, 4)), np.arange(4)) == [1, 0, 0, 0]
        assert value("top2", np.zeros((4, 4)), np.arange(4)) == [1, 1, 0, 0]

    def test_agrees_with_argsort(self):
        generator = np.random.default_rng(0)
        scores = generator.standard_normal((200, 12)).astype(np.float32)
        labels = generator.integers(0, 12, 200)
        for k in (1, 3, 5):
            best = np.argsort(-scores, axis=1)[:, :k]
            assert value(f"top{k}", scores, labels) == (best == labels[:, None]).any(axis=1).tolist()

    def test_several_positions_count_in_parts(self):
        assert value("top1", [[[0, 1], [1, 0], [0, 1], [0, 1]]], [[1, 1, 1, 0]]) == [0.5]

    def test_a_model_that_ends_in_argmax(self):
        assert value("top1", np.array([3, 1, 2]), np.array([3, 2, 2])) == [1, 0, 1]

    @pytest.mark.parametrize(
        ("labels", "match"),
        [
            ([1, 2, 3], "range from 1 to 3; the output has classes 0 to 2"),
            ([-1, 0, 0], "range from -1 to 0"),
            ([0.0, 1.0, 2.0], "integer class numbers"),
            ([[0], [1], [2]], r"needs integer class numbers \[3\]"),
            ([0, 1], r"labels are int64\[2\]"),
        ],
    )
    def test_labels_that_do_not_fit(self, labels, match):
        with pytest.raises(DataError, match=match):
            value("top1", SCORES, labels)

    def test_k_that_covers_everything(self):
        with pytest.raises(UsageError, match="top3 of 3 classes is always right"):
            value("top3", SCORES, [0, 1, 2])


def test_agreement():
    assert value("agreement", SCORES, [[0, 9, 0], [0, 9, 0], [0, 0, 9]]) == [1, 0, 1]


def test_mse():
    assert value("mse", [[1, 2], [3, 4]], [[1, 4], [3, 3]]) == [2, 0.5]
    assert value("mse", np.full((1, 2), 3e4, np.float16), np.full((1, 2), -3e4, np.float16)) == [6e4**2]


def test_cosine():
    one = [[1, 0], [1, 1], [0, 0], [0, 0], [1e200, 0], [-2, 0]]
    other = [[0, 3], [5, 5], [0, 0], [1, 0], [1e200, 0], [1, 0]]
    assert value("cosine", one, other) == pytest.approx([0, 1, 1, 0, 1, -1])


def test_margin():
    assert metrics.margin(np.array([[1.0, 5.0, 3.0], [2.0, 2.0, 0.0]])).tolist() == [2, 0]
    assert metrics.margin(np.array([[[1.0, 5.0], [2.0, 2.5]]])).tolist() == [0.5]


class TestNames:
    @pytest.mark.parametrize("name", ["top", "top0", "accuracy", "topp1"])
    def test_unknown(self, name):
        with pytest.raises(UsageError, match="unknown metric"):
            find_metric(name)

    def test_users_own(self, tmp_path, monkeypatch):
        (tmp_path / "my_metric_module.py").write_text("def score(outputs, labels): return 1.0\n")
        monkeypatch.chdir(tmp_path)
        found = find_metric("my_metric_module:score")
        assert isinstance(found, UserMetric)
        assert found.function({}, None) == 1.0
        with pytest.raises(DataError, match="did you mean 'score'"):
            find_metric("my_metric_module:scor")
        sys.modules.pop("my_metric_module")
