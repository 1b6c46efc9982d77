"""Is a tuned file what it was made from, but for the weights that were tuned, and zero where it shall be?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxprune.model.io import load
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.ops.weights import locate_weights
from onnxprune.patterns import Pattern
from onnxprune.types import Check, Mask
from onnxprune.verification.plan import (
    check_declared_zeros,
    check_pattern,
    check_same_graph,
    first_change,
    other_form,
)
from onnxprune.verification.zeros import nonzero


def verify_tuned(
    path: Path,
    original: ir.Model,
    changed: Collection[str],
    masks: Mapping[str, Mask],
    pattern: Pattern | None = None,
) -> tuple[Check, ...]:
    """Check what tuning alone promises of a saved file; `verify` checks the rest.

    Args:
        path: the file.
        original: what was tuned.
        changed: stored names of the tensors that may differ.
        masks: what may differ from zero, by stored name.
        pattern: that the zeros form, if they are known to form one.
    """
    model = load(path)
    checks = [check_same_graph(model, original, None), check_only_changed(model, original, changed)]
    if masks:
        checks.append(check_exact_zeros(model, masks))
    if masks and pattern is not None and pattern.kind != "unstructured":
        checks.append(check_pattern(locate_weights(model)[0], masks, pattern))
    return tuple(checks)


def check_only_changed(model: ir.Model, original: ir.Model, changed: Collection[str]) -> Check:
    """Check that tensors have the types and shapes they had, and all but some the bits they had."""
    name = "only tuned weights changed"
    before, after = stored_values(original), stored_values(model)
    equal = 0
    for tensor, values in before.items():
        if len(values) != len(after.get(tensor, [])):
            return Check(name, False, f"the file has {len(after.get(tensor, []))} tensors {tensor!r}")
        for old, new in zip(map(tensor_of, values), map(tensor_of, after[tensor]), strict=True):
            problem = other_form(old, new)
            if problem is None and tensor not in changed:
                problem = first_change(old, new, None)
                equal += 1
            if problem is not None:
                return Check(name, False, f"{tensor!r} {problem}")
    return Check(name, True, f"{len(changed)} tensors were tuned, the other {equal} are bit-equal")


def check_exact_zeros(model: ir.Model, masks: Mapping[str, Mask]) -> Check:
    """Check that the zeros of masked tensors are those of the masks, and say how many others there are."""
    check = check_declared_zeros(model, masks)
    if not check.passed:
        return check
    stored = stored_values(model)
    zeros = more = 0
    for name, mask in masks.items():
        present = mask.size - int(np.count_nonzero(nonzero(tensor_of(stored[name][0]))))
        zeros += mask.size - mask.kept
        more += present - (mask.size - mask.kept)
    beside = f"; {more} other weights of these tensors are zero too" if more else ", and there are no others"
    return Check(check.name, True, f"all {zeros} zeros of {len(masks)} tensors are there{beside}")
