"""Small models and data that tuning is tested on."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxprune.data import Dataset

CLASSIFIER = """
<ir_version: 9, opset_import: ["" : 17]>
classify ({batch} x) => ({scores} y)
<float[8, 6] w1, float[8] b1, float[8, 3] w2, float[3] b2>
{{
    hidden = Gemm<transB = 1>(x, w1, b1)
    active = Relu(hidden)
    {last} = Gemm(active, w2, b2)
    {end}
}}
"""


def classifier(seed: int = 0, *, batch: str = "N", softmax: bool = False) -> ir.Model:
    """6 inputs, a hidden layer of 8, 3 classes."""
    text = CLASSIFIER.format(
        batch=f"float[{batch}, 6]",
        scores=f"float[{batch}, 3]",
        last="scores" if softmax else "y",
        end="y = Softmax<axis = 1>(scores)" if softmax else "",
    )
    return filled(text, seed)


def filled(text: str, seed: int = 0) -> ir.Model:
    """Give the declared initializers of a model random values."""
    import onnx

    random = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(text)
    names = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    for info in list(proto.graph.value_info):
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        if info.name in names and shape and not any(info.name in node.output for node in proto.graph.node):
            array = (random.standard_normal(shape) / 2).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return ir.from_proto(proto)


def three_classes(samples: int = 96, seed: int = 0) -> Dataset:
    """Points around three centres, with the number of their centre as label."""
    random = np.random.default_rng(seed)
    labels = np.arange(samples) % 3
    centres = np.random.default_rng(99).standard_normal((3, 6)) * 2
    points = (centres[labels] + random.standard_normal((samples, 6))).astype(np.float32)
    return Dataset.from_arrays({"x": points, "label": labels})


def weights_of(model: ir.Model) -> dict[str, np.ndarray]:
    """The stored tensors by name."""
    return {
        str(name): value.const_value.numpy()
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
