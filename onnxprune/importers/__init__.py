"""PyTorch modules, exported programs and ONNX files -> a clean model.

The only package here that uses torch, and only once a source needs it.
"""

from onnxprune.importers.dispatch import import_model
from onnxprune.importers.input_shapes import InputShape, parse_input_shape
from onnxprune.importers.result import ImportResult

__all__ = ["ImportResult", "InputShape", "import_model", "parse_input_shape"]
