"""Copies of models."""

from __future__ import annotations

import onnx_ir as ir


def copy_of(model: ir.Model) -> ir.Model:
    """Return a copy with graphs, nodes and values of its own, and all that was noted of the model.

    Tensors are shared. A clone by onnx_ir leaves out ``meta``, where loading notes how weights were stored.
    """
    copy = model.clone()
    copy.meta.update(model.meta)
    return copy
