"""Does torch compute what ONNX Runtime computes? A model for which it does not is not tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from onnxprune.errors import DataError
from onnxprune.messages import quoted
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.runtime import open_session
from onnxprune.types import Check

if TYPE_CHECKING:
    from onnxprune.tuning.parts import Probe

#: Largest difference from ONNX Runtime that is not an error, as a share of the largest output: float32 in
#: another order of sums; what float16 and bfloat16 round.
_TOLERANCE = {ir.DataType.FLOAT16: 3e-2, ir.DataType.BFLOAT16: 2e-1}
_USUAL_TOLERANCE = 1e-3


def check_agrees(model: ir.Model, probe: Probe, error: type[Exception], when: str) -> Check:
    """Compare what torch computes with what ONNX Runtime does.

    Raises:
        ModelError, VerificationError: they differ; which of them, the caller says.
        DataError: there is nothing to compare, since the model overflows on these samples.
    """
    name = f"ONNX Runtime agrees {when}"
    if not probe.outputs:
        return Check(name, True, "not compared: the model draws random numbers, or gives no floats")
    results = open_session(model).run(dict(probe.inputs))
    worst = 0.0
    for output, ours in probe.outputs.items():
        theirs = np.asarray(results[output]).astype(np.float32)
        if not np.isfinite(theirs).all():
            raise DataError(f"on these samples output {quoted(output)} holds NaN or infinity {when}")
        difference = float(np.abs(ours - theirs).max(initial=0.0))
        share = difference / max(float(np.abs(theirs).max(initial=0.0)), 1e-6)
        worst = max(worst, share)
        if not share <= _tolerance(model):
            raise error(
                f"output {quoted(output)}: {when} torch and ONNX Runtime differ by {share:.2g} of the "
                "largest value, so it can't be tuned here; please report the model"
            )
    return Check(name, True, f"outputs differ by at most {worst:.1e} of the largest value")


def _tolerance(model: ir.Model) -> float:
    kinds = {tensor_of(values[0]).dtype for values in stored_values(model).values()}
    return max([_USUAL_TOLERANCE, *(_TOLERANCE[kind] for kind in kinds if kind in _TOLERANCE)])
