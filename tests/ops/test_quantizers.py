"""Models as ONNX Runtime's quantizers write them: the same channels go as in the float model, exactly."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import small_models
from cutting import check_cut, open_groups
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.calibrate import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

import onnxprune
from onnxprune.analyze import analyze
from onnxprune.feeds import random_feeds
from onnxprune.model.shapes import input_shapes

NETS = ("residual_net", "depthwise_net", "concat_net", "mlp", "attention")


class _Random(CalibrationDataReader):
    """Three random inputs."""

    def __init__(self, model: ir.Model) -> None:
        shapes = input_shapes(model)
        self.feeds: Iterator[dict[str, np.ndarray]] = iter(random_feeds(model, shapes, n) for n in range(3))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def quantized(proto: onnx.ModelProto, how: str, folder: Path) -> ir.Model:
    """Return a model as the quantizer writes it: ``qdq``, ``qoperator`` or ``dynamic``, each ``-channel``."""
    source, target = folder / "float.onnx", folder / "quantized.onnx"
    onnx.save(proto, source)
    kind, _, by_channel = how.partition("-")
    options = {"per_channel": bool(by_channel), "weight_type": QuantType.QInt8}
    if kind == "dynamic":
        quantize_dynamic(source, target, **options)
    else:
        formats = {"qdq": QuantFormat.QDQ, "qoperator": QuantFormat.QOperator}
        reader = _Random(ir.from_proto(proto))
        quantize_static(source, target, reader, quant_format=formats[kind], **options)
    return onnxprune.load(target)


def sizes(model: ir.Model) -> list[int]:
    return sorted(open_groups(analyze(model)).values())


@pytest.mark.parametrize("how", ["qdq", "qdq-channel", "qoperator-channel", "dynamic", "dynamic-channel"])
@pytest.mark.parametrize("net", NETS)
def test_quantized_models_lose_the_channels_of_the_float_model(net, how, tmp_path):
    proto = getattr(small_models, net)()
    model = quantized(proto, how, tmp_path)
    analysis = check_cut(model)
    assert sorted(open_groups(analysis).values()) == sizes(ir.from_proto(proto))


@pytest.mark.parametrize("how", ["qdq-channel", "qoperator-channel", "dynamic-channel"])
def test_the_report_tells_how_a_quantized_model_was_proved(how, tmp_path):
    model = quantized(small_models.residual_net(), how, tmp_path)
    result = onnxprune.prune(model, amount=0.5)
    (check,) = result.report.checks
    assert "without the rounding of quantizers" in check.detail
    before, after = result.plan.predicted
    assert after.params < 0.45 * before.params


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bit_weights(symmetric, tmp_path):
    """The hidden units go in blocks of 16 along the sum, the width stays: an output."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal(shape).astype(np.float32)
               for name, shape in (("up_w", (32, 128)), ("down_w", (128, 32)))}  # fmt: skip
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,32] x) => (float[N,3,32] y)
        {h = MatMul(x, up_w) r = Relu(h) y = MatMul(r, down_w)}"""
    )
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    quantizer = MatMulNBitsQuantizer(proto, block_size=16, is_symmetric=symmetric)
    quantizer.process()
    path = tmp_path / "four.onnx"
    quantizer.model.save_model_to_file(str(path))
    analysis = check_cut(onnxprune.load(path))
    assert list(open_groups(analysis).values()) == [8 if symmetric else 4]
