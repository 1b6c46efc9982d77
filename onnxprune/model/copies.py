"""Copies of models."""

from __future__ import annotations

import onnx_ir as ir

from onnxprune.errors import ModelError


def copy_of(model: ir.Model) -> ir.Model:
    """Return a copy with graphs, nodes and values of its own, and all that was noted of the model.

    Tensors are shared. A clone by onnx_ir leaves out ``meta``, where loading notes how weights were stored.

    Raises:
        ModelError: a node in a body reads what is made from that body.
    """
    try:
        copy = model.clone()
    except RuntimeError as error:
        # no runtime takes such a model; where operators are unknown, none was asked
        raise ModelError(
            "a node in a body of If, Loop or Scan reads what is made from that body; export the model again"
        ) from error
    copy.meta.update(model.meta)
    return copy
