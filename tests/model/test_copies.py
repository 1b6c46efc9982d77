"""Copies of models: what was noted of them comes along."""

from __future__ import annotations

import onnx_ir as ir
import small_models

from onnxprune.model.copies import copy_of


def test_a_copy_has_its_own_graph_and_keeps_what_was_noted() -> None:
    model = ir.from_proto(small_models.mlp())
    model.meta["stored"] = "beside"
    copy = copy_of(model)
    assert copy.meta["stored"] == "beside"
    assert copy.graph is not model.graph
    for name, value in model.graph.initializers.items():
        assert copy.graph.initializers[name].const_value is value.const_value
