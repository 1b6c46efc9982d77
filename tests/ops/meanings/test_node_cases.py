"""The standard's own test cases: every one of an operator that has a meaning, with the results it expects."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as standard

pytest.importorskip("torch")

import torch
from executing import relative_error

import onnxprune.ops.meanings  # noqa: F401
from onnxprune.executor.module import OnnxModule
from onnxprune.model.nodes import nodes_in
from onnxprune.ops.meanings.base import meaning_for
from onnxprune.ops.meanings.stored import as_torch

#: Operators of the standard without a meaning, and why.
NO_MEANING = {
    "CausalConvWithState": "newer than opset 24",
    "LinearAttention": "newer than opset 24",
    "FlexAttention": "a preview",
    "ImageDecoder": "decodes files",
    "RegexFullMatch": "strings",
    "StringConcat": "strings",
    "StringNormalizer": "strings",
    "StringSplit": "strings",
    "TfIdfVectorizer": "counts words",
    "Adagrad": "an optimizer", "Adam": "an optimizer", "Momentum": "an optimizer", "Gradient": "an optimizer",
    "ArrayFeatureExtractor": "classical learning", "Binarizer": "classical learning",
    "LabelEncoder": "classical learning", "TreeEnsemble": "classical learning",
}  # fmt: skip

#: Cases that are left out, by pattern of their name, and why.
LEFT_OUT = {
    r"bernoulli|training_dropout": "random numbers",
    r"string|_STRING": "strings",
    r"FLOAT4E2M1|float4e2m1|FLOAT8E8M0": "torch has no such numbers",
    r"uint(16|32|64)|bitwise_not_3d": "torch has few functions for these types",
    r"cast.*_to_U?INT[24]": "torch has no such numbers: they are held in 8 bits, which a cast fills",
    r"cast.*_to_FLOAT8": "torch saturates other numbers than the standard says",
    r"col2im_5d": "windows over two axes of space only",
    r"maxunpool_export_with_output_shape": "places count in the shape that is asked for, as in ONNX Runtime",
    r"resize_downsample_scales_(linear|cubic)_align_corners": "sizes are whole numbers, as in ONNX Runtime",
}  # fmt: skip

#: Cases whose expected results are written with four or five digits.
ROUNDED = r"roialign|gridsample_bicubic|averagepool_2d_ceil_last_window_starts_on_pad"

#: Relative error in the type of the result.
TOLERANCES = {torch.float16: 2e-3, torch.bfloat16: 1e-2}

MODULES = sorted(found.name for found in pkgutil.iter_modules(standard.__path__))


@functools.cache
def cases_of(module: str) -> tuple[Any, ...]:
    before = len(standard._NodeTestCases)
    importlib.import_module(f"{standard.__name__}.{module}")
    return tuple(standard._NodeTestCases[before:])


def missing(model: ir.Model) -> set[str]:
    return {node.op_type for node in nodes_in(model.graph) if meaning_for(node) is None and node.op_type}


def tensor_of(value: Any) -> Any:
    """A tensor, a list of tensors, or None, of what a case has for it."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        return [tensor_of(part) for part in value]
    if not isinstance(value, onnx.TensorProto):
        value = numpy_helper.from_array(np.asarray(value))
    return as_torch(ir.from_proto(value), {})


def differences(found: Any, expected: Any, tolerance: float | None = None) -> list[str]:
    """What is wrong with a value, in words."""
    if isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            return ["no such sequence"]
        return [text for pair in zip(found, expected, strict=True) for text in differences(*pair)]
    if expected is None:
        return []
    if not isinstance(found, torch.Tensor):
        return [f"{found} is no tensor"]
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return [f"{found.dtype}{list(found.shape)}, not {expected.dtype}{list(expected.shape)}"]
    if found.dtype.is_complex:
        found, expected = torch.view_as_real(found), torch.view_as_real(expected)
    error = relative_error(found.double().numpy(), expected.double().numpy())
    limit = tolerance or TOLERANCES.get(found.dtype, 1e-5)
    return [] if error <= limit else [f"relative error {error:.2g}"]


def run(case: Any) -> list[str]:
    """What is wrong with a case, in words."""
    module = OnnxModule(ir.from_proto(case.model))
    wrong = []
    for inputs, outputs in case.data_sets:
        names = [value.name for value in case.model.graph.input]
        found = module({name: tensor_of(value) for name, value in zip(names, inputs, strict=True)})
        limit = 2e-4 if re.search(ROUNDED, case.name) else None
        for name, value in zip(module.outputs, outputs, strict=True):
            wrong += [
                f"{case.name} {name}: {text}" for text in differences(found[name], tensor_of(value), limit)
            ]
    return wrong


def chosen(cases: Sequence[Any]) -> list[Any]:
    return [case for case in cases if not any(re.search(pattern, case.name) for pattern in LEFT_OUT)]


@pytest.mark.parametrize("module", MODULES)
def test_cases_of_the_standard(module):
    wrong = []
    ran = 0
    cases = cases_of(module)
    for case in chosen(cases):
        lacking = missing(ir.from_proto(case.model))
        if lacking:
            assert lacking <= set(NO_MEANING), case.name
            continue
        ran += 1
        wrong += run(case)
    assert not wrong
    if not ran:
        pytest.skip("all cases are left out, or have no meaning")


def test_a_case_that_is_wrong_is_told():
    case = next(case for case in cases_of("relu") if case.name == "test_relu")
    assert run(case) == []
    (inputs, (expected,)) = case.data_sets[0]
    broken = type(case)(**{**vars(case), "data_sets": [(inputs, [expected + np.float32(1e-3)])]})
    assert "relative error" in run(broken)[0]
    wider = type(case)(**{**vars(case), "data_sets": [(inputs, [expected.astype(np.float64)])]})
    assert "float32" in run(wider)[0]
