"""A weight that several nodes read is looked at once, and judged along the axis that each sums over."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxprune.model.io import load
from onnxprune.ops.weights import locate_weights
from onnxprune.verification import optimized, verify, zeros
from onnxprune.verification.optimized import trace_zeros
from onnxprune.verification.zeros import count_zeros

BODY = "h = MatMul(x, W)  g = MatMul(h, W)  t = Transpose<perm = [1, 0]>(W)  y = MatMul(g, t)"


@pytest.fixture
def path(tmp_path):
    """W is [8, 8]; whole rows of it are zero: 2:4 along its rows, not along its columns."""
    text = f"<ir_version: 8, opset_import: ['' : 17]> g (float[2, 8] x) => (float[2, 8] y) {{ {BODY} }}"
    proto = onnx.parser.parse_model(text.replace("'", chr(34)))
    weight = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    weight[::2] = 0
    proto.graph.initializer.append(numpy_helper.from_array(weight, "W"))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def reads(monkeypatch, module):
    """Count how often a module reads where a weight is zero."""
    read = []
    monkeypatch.setattr(
        module, "nonzero", lambda *given, real=zeros.nonzero: read.append(given) or real(*given)
    )
    return read


def test_it_is_read_once_and_has_a_pattern_for_each_axis(path, monkeypatch):
    weights, _ = locate_weights(load(path))
    read = reads(monkeypatch, zeros)
    assert [(weight.use.summed_axis, weight.use.tensor) for weight in weights] == [
        (0, "W"),
        (0, "W"),
        (1, "W"),
    ]
    assert [counted.pattern for counted in count_zeros(weights, None)] == ["2:4", "2:4", "unstructured"]
    assert len(read) == 1


def test_its_zeros_are_looked_for_along_each_axis(path, monkeypatch):
    counted = count_zeros(locate_weights(load(path))[0], None)
    read = reads(monkeypatch, optimized)
    dense = ir.serde.deserialize_model(onnx.load(path))
    assert [found.left for found in trace_zeros(counted, dense)] == [32, 32, 32]
    assert len(read) == 4  # twice there, twice here
    array = np.array(dense.graph.initializers["W"].const_value.numpy())
    array[0, 0] = 1
    dense.graph.initializers["W"].const_value = ir.Tensor(array, name="W")
    assert [found.left for found in trace_zeros(counted, dense)] == [31, 31, 31]


def test_the_file_passes(path):
    assert all(check.passed for check in verify(path).checks)
