from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

import onnx.parser  # noqa: E402

from onnxprune.errors import ImporterError  # noqa: E402
from onnxprune.importers.agreement import measure_agreement, to_array  # noqa: E402
from onnxprune.importers.example import Example  # noqa: E402


def doubling(operation: str = "two = Constant <value_float = 2.0> () y = Mul (x, two)") -> ir.Model:
    return ir.from_proto(
        onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3] x) => (float[N, 3] y) {{ {operation} }}'
        )
    )


X = Example((torch.tensor([[1.0, -2.0, 4.0]]),), {})


def test_an_equal_export_differs_by_nothing() -> None:
    agreement = measure_agreement(doubling(), lambda x: 2 * x, [X])

    assert agreement.max_abs_difference == 0
    assert agreement.max_relative_difference == 0


@pytest.mark.parametrize("order", [1, -1])
def test_reports_the_largest_difference_of_all_inputs(order: int) -> None:
    other = Example((torch.tensor([[0.5, 0.5, 0.5]]),), {})

    agreement = measure_agreement(doubling(), lambda x: 2 * x + 2e-4 * x.sum(), [X, other][::order])

    assert agreement.max_abs_difference == pytest.approx(6e-4, rel=1e-2)  # of X
    assert agreement.max_relative_difference == pytest.approx(3e-4 / 1.0003, rel=1e-2)  # of the other


@pytest.mark.parametrize("wrong", [1.01, float("nan"), float("inf"), 0.0])
def test_a_different_export_is_refused(wrong: float) -> None:
    with pytest.raises(ImporterError, match=r"the export differs from the module: output 'y'"):
        measure_agreement(doubling(), lambda x: 2 * x * wrong, [X])


@pytest.mark.parametrize("x", [1.0, 0.0])
def test_an_export_that_is_not_finite_is_refused(x: float) -> None:
    export = doubling("zero = Constant <value_float = 0.0> () y = Div (x, zero)")  # infinity, or NaN

    with pytest.raises(ImporterError, match="differs"):
        measure_agreement(export, lambda x: 2 * x + 1, [Example((torch.full((1, 3), x),), {})])


def test_equal_infinities_agree() -> None:
    export = doubling("zero = Constant <value_float = 0.0> () y = Div (x, zero)")

    assert measure_agreement(export, lambda x: x / 0.0, [X]).max_abs_difference == 0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (lambda x: 2 * x[:, :2], "the shape"),
        (lambda x: (2 * x, x), "1 outputs, the module gives 2"),
        (lambda _: "text", "gives no tensor back"),
        (lambda x: x @ x, r"the module raised RuntimeError on inputs of shape \[1, 3\]"),
    ],
)
def test_other_outputs_are_refused(reference: object, message: str) -> None:
    with pytest.raises(ImporterError, match=message):
        measure_agreement(doubling(), reference, [X])


def test_other_inputs_are_refused() -> None:
    with pytest.raises(ImporterError, match="1 inputs, the module takes 2 tensors"):
        measure_agreement(doubling(), torch.add, [Example((torch.zeros(1, 3), torch.zeros(1, 3)), {})])


def test_bfloat16_keeps_its_values() -> None:
    array = to_array(torch.tensor([1.5, -2.0], dtype=torch.bfloat16))

    assert array.dtype.name == "bfloat16"
    np.testing.assert_array_equal(array.astype(np.float32), [1.5, -2.0])
