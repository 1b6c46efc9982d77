"""One-node models of every basic operator, in its forms over the opsets, against ONNX Runtime."""

# ruff: noqa: E501  a case is a line

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from executing import check_forward, check_gradient, one_node

_RANDOM = np.random.default_rng(7)


def _f(*shape: int) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(np.float32)


def _positive(*shape: int) -> np.ndarray:
    return _RANDOM.uniform(0.5, 2, shape).astype(np.float32)


def _unit(*shape: int) -> np.ndarray:
    return _RANDOM.uniform(-0.9, 0.9, shape).astype(np.float32)


def _i(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


@dataclass(frozen=True)
class Case:
    """One node; ``smooth`` asks for gradients by finite differences too."""

    op: str
    inputs: dict[str, np.ndarray]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    opset: int = 17
    order: list[str] | None = None
    outputs: int = 1
    smooth: bool = True
    attributes: dict[str, Any] = field(default_factory=dict)


X = {"x": _f(2, 3, 4)}
IMAGE = {"x": _f(2, 4, 7, 6)}
MATRIX = {"x": _f(3, 4)}
INTS = {"x": _RANDOM.integers(-9, 9, (3, 4)), "y": _RANDOM.integers(1, 5, (3, 4))}
BOOLS = {"x": _RANDOM.random((3, 4)) > 0.5, "y": _RANDOM.random((4,)) > 0.5}
BYTES = {"x": _RANDOM.integers(0, 255, (3, 4)).astype(np.uint8), "y": np.full((3, 4), 3, np.uint8)}
BAD = {"x": np.array([1, np.nan, np.inf, -np.inf, 0], np.float32)}


def _unary_cases() -> list[Case]:
    smooth = ("Atan", "Cos", "Cosh", "Erf", "Exp", "Neg", "Sigmoid", "Sin", "Sinh", "Softplus", "Softsign",
              "Tanh", "Tan", "Asinh")  # fmt: skip
    cases = [Case(op, X) for op in (*smooth, "Abs", "Ceil", "Floor", "Relu", "Round", "Sign")]
    cases += [Case(op, {"x": _unit(3, 4)}) for op in ("Acos", "Asin", "Atanh")]
    cases += [Case(op, {"x": _positive(3, 4)}) for op in ("Log", "Sqrt", "Reciprocal")]
    cases += [Case("Acosh", {"x": 1 + _positive(3, 4)}), Case("HardSwish", X), Case("Mish", X, opset=18)]
    cases += [Case("IsNaN", BAD, smooth=False), Case("IsInf", BAD, smooth=False)]
    cases += [
        Case("IsInf", BAD, smooth=False, attributes={"detect_negative": low, "detect_positive": high})
        for low, high in ((0, 1), (1, 0), (0, 0))
    ]
    cases += [Case("Not", {"x": BOOLS["x"]}, smooth=False), Case("BitwiseNot", {"x": INTS["x"]}, opset=18)]
    cases += [
        Case(op, X, attributes={"alpha": 0.7}) for op in ("Elu", "Celu", "LeakyRelu", "ThresholdedRelu")
    ]
    cases += [Case("Selu", X), Case("Selu", X, attributes={"alpha": 1.2, "gamma": 0.8})]
    cases += [Case("Shrink", X, attributes={"lambd": 0.4, "bias": 0.1}), Case("HardSigmoid", X)]
    cases += [Case("HardSigmoid", {"x": 3 * _f(9)}, attributes={"alpha": 1 / 6, "beta": 0.5})]
    return cases + [Case("Gelu", X, opset=20, attributes={"approximate": how}) for how in ("none", "tanh")]


def _binary_cases() -> list[Case]:
    pair, wide = {"x": _f(2, 3, 4), "y": _positive(3, 1)}, {"x": _f(3, 4), "y": _f(2, 1, 4)}
    cases = [Case(op, pair) for op in ("Add", "Div", "Mul", "Sub")] + [Case("Mul", wide, opset=7)]
    cases += [Case(op, INTS) for op in ("Add", "Div", "Mul", "Mod", "Sub", "Equal", "Max")]
    cases += [
        Case(op, pair, smooth=False) for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ]
    cases += [Case(op, BOOLS) for op in ("And", "Or", "Xor", "Equal")]
    cases += [Case(op, BYTES, opset=18) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")]
    cases += [Case("BitShift", BYTES, attributes={"direction": way}) for way in ("LEFT", "RIGHT")]
    cases += [Case("BitShift", {k: v.astype(np.uint64) << np.uint64(40) if k == "x" else v.astype(np.uint64)
                                for k, v in BYTES.items()}, attributes={"direction": "RIGHT"})]  # fmt: skip
    cases += [
        Case("Mod", pair, smooth=False, attributes={"fmod": 1}),
        Case("Mod", INTS, attributes={"fmod": 1}),
    ]
    cases += [Case("Mod", {"x": INTS["x"].astype(np.int32), "y": -INTS["y"].astype(np.int32)})]
    cases += [Case("Pow", {"x": _positive(3, 4), "y": _f(4)})]
    cases += [Case("Pow", X, {"e": np.array(e, np.float32)}) for e in (2, 3)]
    cases += [Case("Pow", {"x": _positive(3, 4)}, {"e": np.array(e, np.float32)}) for e in (0.5, -1)]
    cases += [Case("Pow", {"x": INTS["x"]}, {"e": np.array(3, np.int64)}), Case("Pow", INTS)]
    cases += [Case("Pow", {"x": _positive(3)}, {"e": np.array(3, np.int64)}, opset=12)]
    cases += [Case("PRelu", X, {"slope": _f(3, 1)}), Case("PRelu", {**IMAGE, "slope": _f(4, 1, 1)})]
    cases += [Case(op, {"x": _f(3, 4), "y": _f(4), "z": _f(3, 1)}) for op in ("Max", "Mean", "Min", "Sum")]
    cases += [Case("Where", {"c": BOOLS["x"], "x": _f(3, 4), "y": _f(4)}), Case("Max", X), Case("Sum", X)]
    low, high = np.array(-0.4, np.float32), np.array(0.6, np.float32)
    cases += [Case("Clip", X, {"low": low, "high": high}), Case("Clip", X, {"low": low})]
    cases += [
        Case("Clip", X, {"high": high}, order=["x", "", "high"]),
        Case("Clip", X),
        Case("Clip", {**X, "l": low}),
    ]
    cases += [Case("Clip", X, opset=opset, attributes={"min": -0.3, "max": 0.5}) for opset in (7, 10)]
    cases += [Case("Clip", {"x": INTS["x"]}, {"low": np.array(-2), "high": np.array(3)})]
    cases += [Case("Clip", {"x": 9 * _f(20)}, {"low": np.float32(0), "high": np.float32(6)})]
    cases += [Case("Cast", {"x": np.array([0, 0.3, 1.5, -2.7, 300], np.float32)}, smooth=False, attributes={"to": to})
              for to in (1, 6, 7, 9, 10, 11)]  # fmt: skip
    cases += [Case("CastLike", {"x": _f(3), "like": INTS["x"]}, smooth=False, opset=19)]
    return cases


def _convolution_cases() -> list[Case]:
    cases = []
    for rank in (1, 2, 3):
        x, w = _f(1, 4, *[4, 3, 2][:rank]), _f(6, 2, *[3, 2, 2][:rank])
        cases.append(Case("Conv", {"x": x, "w": w, "b": _f(6)}, attributes={"group": 2}))
        cases.append(Case("ConvTranspose", {"x": x, "w": _f(4, 3, *[3, 2, 2][:rank]), "b": _f(6)}, attributes={
            "group": 2, "strides": [2, 3, 2][:rank], "pads": [1, 0, 0][:rank] + [0, 1, 0][:rank],
            "output_padding": [1, 2, 0][:rank]}))  # fmt: skip
    w = _f(5, 4, 3, 2)
    for more in (
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
        {"auto_pad": "VALID", "dilations": [2, 1]}, {"pads": [0, 1, 2, 3], "strides": [3, 1]},
        {"pads": [1, 1, 1, 1], "dilations": [1, 2], "kernel_shape": [3, 2]},
    ):  # fmt: skip
        cases.append(Case("Conv", {**IMAGE, "w": w}, attributes=more))
        if "auto_pad" in more or more["pads"] == [1, 1, 1, 1]:
            cases.append(Case("ConvTranspose", {**IMAGE, "w": _f(4, 3, 3, 2)}, attributes=more))
    turned = {**IMAGE, "w": _f(4, 3, 3, 3), "b": _f(3)}
    cases += [
        Case("ConvTranspose", turned, attributes=more)
        for more in (
            {"output_shape": [15, 13], "strides": [2, 2]},
            {"output_shape": [14, 12], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
            {"output_shape": [14, 12], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
            {"strides": [3, 2], "pads": [1, 0, 1, 0], "output_padding": [2, 1]},
        )
    ]
    return [*cases, Case("Conv", {**IMAGE, "w": _f(8, 1, 3, 3)}, attributes={"group": 4, "pads": [1] * 4})]


def _pool_cases() -> list[Case]:
    forms: list[dict[str, Any]] = [
        {}, {"strides": [2, 2]}, {"strides": [2, 2], "ceil_mode": 1}, {"pads": [1, 0, 0, 1]},
        {"pads": [1, 1, 1, 1], "strides": [2, 3], "ceil_mode": 1}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "VALID"},
    ]  # fmt: skip
    cases = []
    for form in forms:
        form = {"kernel_shape": [3, 2], **form}
        cases += [Case("MaxPool", IMAGE, attributes=form), Case("LpPool", IMAGE, opset=18, attributes=form)]
        cases += [Case("MaxPool", IMAGE, outputs=2, attributes=form, smooth=False)]
        cases += [
            Case("AveragePool", IMAGE, opset=19, attributes={**form, "count_include_pad": c}) for c in (0, 1)
        ]
    dilated = {"kernel_shape": [2, 2], "dilations": [2, 3], "pads": [1, 1, 1, 1]}
    cases += [
        Case("MaxPool", IMAGE, attributes=dilated),
        Case("AveragePool", IMAGE, opset=19, attributes=dilated),
    ]
    cases += [
        Case(
            "MaxPool", IMAGE, outputs=2, smooth=False, attributes={"kernel_shape": [2, 2], "storage_order": 1}
        )
    ]
    cases += [Case(op, {"x": _f(2, 3, 8)}, attributes={"kernel_shape": [3], "strides": [2]})
              for op in ("MaxPool", "AveragePool")]  # fmt: skip
    cases += [Case(op, {"x": _f(1, 2, 5, 4, 6)}, attributes={"kernel_shape": [2, 3, 2]})
              for op in ("MaxPool", "AveragePool")]  # fmt: skip
    cases += [
        Case(op, x) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool") for x in (X, IMAGE)
    ]
    return cases


def _product_cases() -> list[Case]:
    shapes = [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((4,), (2, 4, 5)),
        ((2, 1, 3, 4), (3, 4, 2)),
        ((4,), (4,)),
    ]
    cases = [Case("MatMul", {"a": _f(*a), "b": _f(*b)}) for a, b in shapes]
    for turn_a in (0, 1):
        for turn_b in (0, 1):
            a, b = _f(*((4, 3) if turn_a else (3, 4))), _f(*((5, 4) if turn_b else (4, 5)))
            form = {"transA": turn_a, "transB": turn_b}
            cases += [Case("Gemm", {"a": a, "b": b}, attributes=form)]
            cases += [
                Case("Gemm", {"a": a, "b": b, "c": c}, attributes=form) for c in (_f(5), _f(3, 1), _f(1))
            ]
            cases += [
                Case("Gemm", {"a": a, "b": b, "c": _f(5)}, attributes={**form, "alpha": 0.5, "beta": 2.0})
            ]
    return cases


def _move_cases() -> list[Case]:
    cases = [Case("Reshape", X, {"s": s}) for s in (_i(4, 6), _i(0, -1), _i(-1), _i(0, 1, 0, -1))]
    cases += [Case("Reshape", {"x": _f(0, 3)}, {"s": _i(3, 0)}, smooth=False, attributes={"allowzero": 1})]
    cases += [Case("Flatten", X, attributes={"axis": axis}) for axis in (0, 1, 3, -1)]
    cases += [Case("Transpose", X), Case("Transpose", X, attributes={"perm": [2, 0, 1]})]
    thin = {"x": _f(1, 3, 1, 2)}
    cases += [
        Case("Squeeze", thin),
        Case("Squeeze", thin, {"a": _i(0, -2)}),
        Case("Unsqueeze", X, {"a": _i(0, -1)}),
    ]
    cases += [Case("Squeeze", thin, opset=11, attributes={"axes": [0]}), Case("Unsqueeze", X, {"a": _i(2)})]
    cases += [Case("Unsqueeze", X, opset=11, attributes={"axes": [0, 3]})]
    cases += [Case("Expand", {"x": _f(3, 1)}, {"s": s}) for s in (_i(2, 1, 4), _i(1), _i(3, 4))]
    cases += [Case("Shape", X, smooth=False), Case("Size", X, smooth=False)]
    cases += [
        Case("Shape", X, smooth=False, attributes={"start": a, "end": b})
        for a, b in ((1, 3), (-2, 9), (2, 1))
    ]
    cases += [Case("Concat", {"x": _f(2, 3), "y": _f(2, 2)}, attributes={"axis": axis}) for axis in (1, -1)]
    cases += [Case("Split", {"x": _f(2, 7)}, {"s": _i(2, 5)}, outputs=2, attributes={"axis": 1})]
    cases += [Case("Split", {"x": _f(6, 2)}, outputs=3), Case("Split", {"x": _f(6, 2)}, outputs=2, opset=11)]
    cases += [Case("Split", {"x": _f(2, 7)}, outputs=3, opset=18, attributes={"axis": -1, "num_outputs": 3})]
    cases += [Case("Split", {"x": _f(2, 7)}, outputs=2, opset=11, attributes={"axis": 1, "split": [3, 4]})]
    top = 2**63 - 1
    for starts, ends, axes, steps in (
        ([1], [3], [2], [1]), ([0, 1], [top, -1], [0, 2], [1, 2]), ([-1], [-top], [2], [-1]), ([2], [0], [1], [-2]),
        ([3], [-9], [-1], [-2]), ([5], [9], [2], [1]), ([1], [3], [2], [-1]), ([-3], [top], [2], [2]),
        ([9], [0], [2], [-3]), ([0, 3, 1], [2, 0, 4], None, None),
    ):  # fmt: skip
        given = {"s": _i(*starts), "e": _i(*ends)}
        order = ["x", "s", "e"]
        if axes is not None:
            given |= {"a": _i(*axes), "t": _i(*(steps or ()))}
            order += ["a", "t"]
        cases.append(Case("Slice", {"x": _f(2, 4, 4)}, given, order=order))
    cases += [Case("Slice", X, opset=9, attributes={"starts": [0, 1], "ends": [9, -1], "axes": [1, 2]})]
    for axis in (0, 1, -1):
        cases += [
            Case("Gather", X, {"i": i}, attributes={"axis": axis})
            for i in (_i(1, 0, -1), _i([[1], [0]]), np.array(-1))
        ]
    cases += [Case("Gather", {**MATRIX, "i": np.array([[2, 0], [1, 1]])})]
    cases += [
        Case("Gather", {"x": INTS["x"], "i": np.array(1)}),
        Case("Gather", {"x": _i(5, 6, 7)}, {"i": np.array(-1)}),
    ]
    pads = _i(0, 1, 2, 0, 2, 1)
    cases += [Case("Pad", X, {"p": pads}, attributes={"mode": mode}, opset=19)
              for mode in ("constant", "edge", "reflect", "wrap")]  # fmt: skip
    cases += [Case("Pad", X, {"p": _i(0, -1, 1, 1, 0, -2), "v": np.array(1.5, np.float32)})]
    cases += [Case("Pad", X, {"p": _i(1, 2), "a": _i(-1)}, order=["x", "p", "", "a"], opset=18)]
    cases += [Case("Pad", X, opset=7, attributes={"pads": [0, 0, 1, 0, 1, 0], "value": 2.0})]
    cases += [Case("Pad", {"x": INTS["x"]}, {"p": _i(0, 1, 1, 0), "v": np.array(7)})]
    cases += [Case("Pad", X, {"p": pads, "v": np.array(0.5, np.float32)}, order=["x", "p", "v"])]
    cases += [Case("Tile", X, {"r": _i(1, 2, 3)}), Case("Tile", {**X, "r": _i(2, 1, 1)})]
    cases += [Case("Trilu", X, attributes={"upper": upper}) for upper in (0, 1)]
    cases += [Case("Trilu", X, {"k": np.array(-1)}, attributes={"upper": 0})]
    deep = {"x": _f(2, 8, 2, 3)}
    cases += [
        Case("DepthToSpace", deep, attributes={"blocksize": 2, "mode": mode}) for mode in ("DCR", "CRD")
    ]
    cases += [Case("SpaceToDepth", {"x": _f(2, 3, 4, 6)}, attributes={"blocksize": 2}), Case("Identity", X)]
    cases += [Case("EyeLike", MATRIX, smooth=False, attributes={"k": k, "dtype": 7}) for k in (0, 1, -1)]
    cases += [Case("ConstantOfShape", {"s": _i(2, 3)}, smooth=False)]
    cases += [Case("Range", {"a": np.array(2), "b": np.array(9), "c": np.array(3)})]
    cases += [
        Case(
            "Range", {k: np.array(v, np.float32) for k, v in (("a", 5), ("b", 1), ("c", -0.7))}, smooth=False
        )
    ]
    lengths = _i(3, 1)
    cases += [Case("ReverseSequence", {"x": _f(4, 2, 3), "n": lengths}, smooth=False)]
    cases += [Case("ReverseSequence", {"x": _f(2, 4, 3), "n": lengths}, smooth=False,
                   attributes={"batch_axis": 0, "time_axis": 1})]  # fmt: skip
    return cases


def _reduction_cases() -> list[Case]:
    names = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    cases = []
    for name in names:
        op, x = f"Reduce{name}", {"x": _positive(2, 3, 4)}
        new = name == "Sum"
        cases += [Case(op, x, opset=18), Case(op, x, {"a": _i(-1, 0)}, opset=18, attributes={"keepdims": 0})]
        cases += [Case(op, x, {"a": _i(1)}, opset=13 if new else 18)]
        cases += [Case(op, x, opset=11, attributes={"axes": [1, 2], "keepdims": 0}), Case(op, x, opset=7)]
        cases += [Case(op, x, {"a": np.zeros(0, np.int64)}, opset=18, attributes={"noop_with_empty_axes": 1})]
    cases += [
        Case(f"Reduce{name}", {"x": INTS["x"]}, opset=13) for name in ("Max", "Min", "Sum", "Mean", "Prod")
    ]
    tied = {"x": np.array([[1, 3, 3], [2, 2, 0]], np.float32)}
    for op in ("ArgMax", "ArgMin"):
        cases += [
            Case(op, tied, smooth=False, attributes={"axis": 1, "select_last_index": last}) for last in (0, 1)
        ]
        cases += [Case(op, X, smooth=False, attributes={"axis": -2, "keepdims": 0})]
    for exclusive in (0, 1):
        for reverse in (0, 1):
            form = {"exclusive": exclusive, "reverse": reverse}
            cases += [Case("CumSum", X, {"a": np.array(1)}, attributes=form)]
    return [*cases, Case("CumSum", {"x": INTS["x"], "a": np.array(-1)})]


def _normalisation_cases() -> list[Case]:
    four = {"s": _f(4), "b": _f(4)}
    cases = [Case("BatchNormalization", IMAGE, {**four, "m": _f(4), "v": _positive(4)}, opset=opset)
             for opset in (7, 9, 15)]  # fmt: skip
    cases += [Case("BatchNormalization", {"x": _f(3, 4)}, {**four, "m": _f(4), "v": _positive(4)})]
    cases += [
        Case("InstanceNormalization", {**IMAGE, **four}),
        Case("InstanceNormalization", {"x": _f(2, 4, 9), **four}),
    ]
    cases += [Case("GroupNormalization", {**IMAGE, **four}, opset=21, attributes={"num_groups": 2})]
    cases += [
        Case("GroupNormalization", IMAGE, {"s": _f(2), "b": _f(2)}, opset=18, attributes={"num_groups": 2})
    ]
    cases += [Case("LayerNormalization", {**X, **four}), Case("LayerNormalization", {**X, "s": _f(4)})]
    cases += [
        Case(
            "LayerNormalization", {**X, "s": _f(3, 4), "b": _f(3, 4)}, attributes={"axis": 1, "epsilon": 0.1}
        )
    ]
    cases += [Case("LayerNormalization", {**X, "s": _f(3, 4)}, outputs=3, attributes={"axis": -2})]
    cases += [Case("LayerNormalization", {**X, "s": _f(4)}, {"b": _f(4)}, attributes={"axis": 1})]
    cases += [Case("RMSNormalization", {**X, "s": _f(4)}, opset=23)]
    cases += [Case("LpNormalization", X, attributes={"axis": axis, "p": p}) for axis, p in ((-1, 2), (1, 1))]
    cases += [Case("LRN", IMAGE, attributes={"size": size, "alpha": 0.3, "bias": 1.5}) for size in (3, 5)]
    cases += [
        Case("MeanVarianceNormalization", IMAGE),
        Case("MeanVarianceNormalization", X, attributes={"axes": [1]}),
    ]
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        smooth = op != "Hardmax"
        cases += [Case(op, X, opset=opset, smooth=smooth) for opset in (7, 11, 13)]
        cases += [Case(op, X, opset=opset, smooth=smooth, attributes={"axis": 1}) for opset in (11, 13)]
        cases += [Case(op, X, opset=11, smooth=smooth, attributes={"axis": 0})]
    return cases


CASES = [
    *_unary_cases(), *_binary_cases(), *_convolution_cases(), *_pool_cases(), *_product_cases(), *_move_cases(),
    *_reduction_cases(), *_normalisation_cases(),
]  # fmt: skip


def _name(case: Case) -> str:
    form = "-".join(f"{key}={value}" for key, value in case.attributes.items()).replace(" ", "")
    return f"{case.op}-{case.opset}-{'-'.join((*case.inputs, *case.constants))}-{form}"


def _model(case: Case) -> Any:
    return one_node(
        case.op, case.inputs, opset=case.opset, constants=case.constants, order=case.order, outputs=case.outputs,
        **case.attributes,
    )  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_it_computes_what_onnx_runtime_computes(case):
    check_forward(_model(case), case.inputs)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if case.smooth and any(a.dtype == np.float32 for a in case.inputs.values())],
    ids=_name,
)
def test_its_gradient_is_that_of_finite_differences(case):
    check_gradient(_model(case), case.inputs)
