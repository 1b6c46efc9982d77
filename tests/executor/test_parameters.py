"""What trains and what does not, judged by what reads it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

pytest.importorskip("torch")

from executing import one_node
from small_models import attention, residual_net

from onnxprune.executor.module import OnnxModule
from onnxprune.executor.parameters import is_grid, is_mask, is_wave_table

_RANDOM = np.random.default_rng(3)


def _module(body: str, **constants: np.ndarray) -> OnnxModule:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {body}')
    model.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    return OnnxModule(ir.from_proto(model))


def _f(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def test_all_weights_of_a_network_train_but_its_statistics():
    module = OnnxModule(ir.from_proto(residual_net()))
    names = {tensor.name for tensor in residual_net().graph.initializer}
    statistics = {name for name in names if name.endswith(("running_mean", "running_var"))}
    assert statistics
    assert set(module.trained) == names - statistics
    assert all("statistic" in module.frozen[name] for name in statistics)
    assert not any("running" in name for name, _ in module.named_parameters())


def test_single_numbers_of_an_attention_do_not_train():
    module = OnnxModule(ir.from_proto(attention()))
    assert all(parameter.numel() > 1 for parameter in module.trained.values())
    assert any(name.endswith("weight") for name in module.trained)


def _rotary(positions: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(positions)[:, None] / 100 ** (np.arange(width) / width)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def test_tables_of_waves_do_not_train():
    cos, sin = _rotary(12, 4)
    module = _module("(float[n, 12, 4] x) => (float[n, 12, 4] y) { a = Mul(x, c) b = Mul(x, s) y = Add(a, b) }", c=cos, s=sin)  # noqa: E501  # fmt: skip
    assert not module.trained
    assert set(module.frozen.values()) == {"a table of sines and cosines"}


def test_frequencies_of_angles_do_not_train():
    module = _module(
        "(float[n, 1] x) => (float[n, 4] y) { a = Mul(x, f) b = Unsqueeze(a, zero) c = Cos(b) d = Squeeze(c, zero) y = Mul(d, w) }",  # noqa: E501
        f=_f(4), w=_f(4), zero=np.array([0]),
    )  # fmt: skip
    assert list(module.trained) == ["w"]
    assert "angles" in module.frozen["f"]


def test_masks_do_not_train_and_learned_offsets_do():
    triangle = np.triu(np.full((6, 6), -1e9, np.float32), 1)
    module = _module(
        "(float[n, 6, 6] x) => (float[n, 6, 6] y) { a = Add(x, mask) b = Add(a, offset) c = Mul(b, keep) y = Softmax(c) }",  # noqa: E501
        mask=triangle, offset=np.zeros((6, 6), np.float32), keep=np.tril(np.ones((6, 6), np.float32)),
    )  # fmt: skip
    assert list(module.trained) == ["offset"]
    assert module.frozen == {"mask": "a mask", "keep": "a mask"}


def test_what_scales_an_input_does_not_train():
    module = _module(
        "(float[n, 3, 5, 5] x) => (float[n, 3, 5, 5] y) { a = Sub(x, mean) b = Relu(a) y = Mul(b, gamma) }",
        mean=_f(3, 1, 1), gamma=_f(3, 1, 1),
    )  # fmt: skip
    assert list(module.trained) == ["gamma"]
    assert "scale" in module.frozen["mean"]


def test_limits_and_steps_do_not_train():
    x = {"x": _f(3)}
    module = OnnxModule(ir.from_proto(one_node("Clip", x, constants={"low": np.float32(0), "high": np.float32(6)})))  # noqa: E501  # fmt: skip
    assert not module.trained
    assert set(module.frozen) == {"low", "high"}


def test_the_parts_of_a_normalised_weight_train():
    module = _module(
        """(float[n, 4] x) => (float[n, 5] y) {
            norm = ReduceL2 <axes = [0], keepdims = 1> (v) unit = Div(v, norm) w = Mul(unit, g)
            y = MatMul(x, w)
        }""",
        v=_f(4, 5), g=_f(1, 5),
    )  # fmt: skip
    assert set(module.trained) == {"v", "g"}
    x = np.ones((2, 4), np.float32)
    import torch

    module({"x": torch.from_numpy(x)})["y"].square().sum().backward()
    gradient = module.trained["v"].grad
    assert gradient.norm() > 0
    assert torch.allclose(
        (gradient * module.trained["v"]).sum(0), torch.zeros(5), atol=1e-4
    )  # along the sphere


def test_tokens_that_are_repeated_for_the_batch_train():
    module = _module(
        """(float[n, 3, 4] x) => (float[n, k, 4] y) {
            s = Shape <start = 0, end = 1> (x) t = Concat <axis = 0> (s, ones) e = Expand(token, t)
            y = Concat <axis = 1> (e, x)
        }""",
        token=_f(1, 1, 4), ones=np.array([1, 1]),
    )  # fmt: skip
    assert list(module.trained) == ["token"]


def test_a_table_is_told_by_its_numbers():
    cos, sin = _rotary(40, 8)
    assert is_wave_table(cos)
    assert is_wave_table(np.stack([sin, cos], -1).reshape(1, 40, 16))
    for other in (
        _f(40, 8) / 4,
        np.zeros((40, 8)),
        np.ones((40, 8)),
        cos[:3],
        2 * cos,
        cos + _f(40, 8) / 100,
    ):
        assert not is_wave_table(other)
    assert is_mask(np.array([0, -np.inf]))
    assert is_mask(np.array([[0, 1], [1, 1]]))
    assert not is_mask(np.array([1.0, 0.0]))  # may be a scale
    assert not is_mask(np.ones((2, 2)))
    assert not is_mask(np.array([0.1, -np.inf]))
    assert is_grid(np.arange(9) + 0.5)
    assert not is_grid(np.zeros(9))
    assert not is_grid(_f(9))
