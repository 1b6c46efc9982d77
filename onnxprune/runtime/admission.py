"""Whether ONNX Runtime takes a model at all, asked before anything is worked out about it.

Types and shapes that do not fit, attributes that make no sense: ONNX Runtime judges these, since a model
that it refuses can be neither proved nor verified. It is asked about a model without weights, so nothing of
them is read, and nothing is optimized or run. What is missing in this installation (kernels for a precision,
somebody's own operators) is no fault of the model and passes.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.errors import ModelError, RuntimeFailure
from onnxprune.messages import one_line, quoted, visible
from onnxprune.model.io import PATH
from onnxprune.model.serialize import recall
from onnxprune.model.size import tensor_bytes
from onnxprune.model.skeleton import hollow
from onnxprune.model.stored import all_nodes
from onnxprune.runtime.execution import DEFAULT
from onnxprune.runtime.library import ERRORS, reason
from onnxprune.runtime.opening import create, open_session, session_options

#: In the meta of a model that passed.
_ADMITTED = "onnxprune.admitted"

#: Domains whose operators ONNX Runtime knows; those of others come with libraries of their own.
_KNOWN_DOMAINS = frozenset((
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.nchwc", "com.ms.internal.nhwc",
))  # fmt: skip

#: Weights that are read to make sure that a refusal is not because they were left out.
_MOST_READ_BYTES = 1 << 30

#: How ONNX Runtime's reason begins where a kernel is missing.
MISSING_HERE = "NOT_IMPLEMENTED"


def admit(model: ir.Model, *, to_run: bool = True) -> None:
    """Refuse a model that ONNX Runtime would refuse on any machine. A model is asked about once.

    Args:
        model: not changed.
        to_run: it is going to be run, so that operators which come with libraries of their own are refused,
            too; otherwise a model that has some passes unasked.

    Raises:
        ModelError: with ONNX Runtime's reason.
    """
    if model.meta.get(_ADMITTED):
        return
    foreign = _foreign_operator(model)
    if foreign is not None:
        if not to_run:
            return
        raise ModelError(
            f"{label_of(model)}: has the operator {quoted(foreign)}, which ONNX Runtime does not have, so "
            "that nothing about it can be proved; replace it by standard operators"
        )
    problem = _refusal(model)
    if problem is not None:
        raise ModelError(f"{label_of(model)}: ONNX Runtime can't open it: {problem}")
    admitted(model)  # not its copies: these are changed


def admitted(model: ir.Model) -> ir.Model:
    """Say of a model that it need not be asked about: it ran. Return it."""
    model.meta[_ADMITTED] = True
    return model


def label_of(model: ir.Model) -> str:
    """Return what messages call a model: the path that it was read from, if it was."""
    path = recall(model, PATH)
    return "the model" if path is None else visible(path)


def _foreign_operator(model: ir.Model) -> str | None:
    for node in all_nodes(model):
        if node.domain not in _KNOWN_DOMAINS and node.op_identifier() not in model.functions:
            return f"{node.domain}.{node.op_type}"
    return None


def _refusal(model: ir.Model) -> str | None:
    """Return why ONNX Runtime refuses a model, None if it does not."""
    options = session_options(DEFAULT, "none", prepack=False)
    try:
        create(hollow(model).SerializeToString(), options, "CPUExecutionProvider")
    except ERRORS as error:
        problem = reason(error)
    else:
        return None
    if problem.startswith(MISSING_HERE):
        return None
    if tensor_bytes(model) > _MOST_READ_BYTES:
        return problem
    try:
        open_session(model, optimize="none", prepack=False, label="it")
    except RuntimeFailure as error:
        return None if MISSING_HERE in str(error) else one_line(problem)
    return None
