"""Writes the exported models that golden groups are kept of: ``python tests/golden/make_models.py``.

They are kept as files, since another version of torch may export another graph. Weights are rounded to a few
levels, so that they compress well, and what only people read (names of source lines) is left out.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import onnx
from onnx import numpy_helper

#: Architecture and exporter: each family of spellings at least once.
EXPORTED = (
    ("convnext", "ts"),
    ("decoder", "dynamo"),
    ("dense_concat", "ts"),
    ("detection_head", "ts"),
    ("encoder_decoder", "dynamo"),
    ("ghost", "dynamo"),
    ("gru_classifier", "dynamo"),
    ("mixture_of_experts", "ts"),
    ("res2net", "ts"),
    ("rotary_decoder", "ts"),
    ("selective_kernel", "dynamo"),
    ("shifted_windows", "dynamo"),
    ("split_concat", "dynamo"),
    ("unet", "ts"),
    ("vision_transformer", "ts"),
    ("wavenet", "dynamo"),
)

MODELS = Path(__file__).parent / "models"

#: The one note of the exporter's that groups are named after.
SCOPES = "pkg.torch.onnx.name_scopes"

#: Steps for each standard deviation of a weight, and how many of them there are on each side of zero.
STEPS, LEVELS = 2, 4


def rounded(weights: np.ndarray) -> np.ndarray:
    """Return weights in at most nine levels; tables with few values of their own stay as they are."""
    if weights.dtype != np.float32 or weights.ndim < 2 or len(np.unique(weights)) <= 4 * LEVELS * LEVELS:
        return weights
    step = weights.std() / STEPS
    return (np.clip(np.round(weights / step), -LEVELS, LEVELS) * step).astype(np.float32)


def compact(data: bytes) -> bytes:
    """Return a model with rounded weights and without what only people read."""
    model = onnx.load_model_from_string(data)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(rounded(numpy_helper.to_array(tensor)), tensor.name))
    for node in model.graph.node:
        scopes = [entry for entry in node.metadata_props if entry.key == SCOPES]
        del node.metadata_props[:]
        node.metadata_props.extend(scopes)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                array = rounded(numpy_helper.to_array(attribute.t))
                attribute.t.CopyFrom(numpy_helper.from_array(array, attribute.t.name))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    return model.SerializeToString()


def main() -> None:
    """Write a file for every exported model."""
    import architectures

    MODELS.mkdir(exist_ok=True)
    for name, exporter in EXPORTED:
        data = compact(architectures.export(name, exporter))
        (MODELS / f"{name}_{exporter}.onnx.gz").write_bytes(gzip.compress(data, 9, mtime=0))


if __name__ == "__main__":
    main()
