"""Paths of modules from what exporters leave: names of weights, scopes, names of nodes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxprune.model.module_paths import common_path, module_path


def node(name: str, weight: str, scopes: str = "") -> ir.Node:
    value = ir.Value(name=weight, const_value=ir.tensor(np.ones(2, np.float32), name=weight))
    ir.Graph([], [], nodes=[], initializers=[value])
    made = ir.node("MatMul", [ir.Value(name="x"), value], name=name)
    if scopes:
        made.metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    return made


@pytest.mark.parametrize(
    ("name", "weight", "scopes", "path"),
    [
        ("n", "layers.0.fc.weight", "", "layers.0.fc"),
        ("/a/fc/MatMul", "onnx::MatMul_7", "", "a.fc"),
        ("/a/fc/MatMul", "/a/fc/Constant.1_output_0", "", "a.fc"),
        ("/f/f.1/f.1.0/conv/Conv", "w", "", "f.1.0.conv"),
        ("/encoder/layer.0/attention/MatMul", "w", "", "encoder.layer.0.attention"),
        ("node_linear", "val_3", "['', 'blocks', 'blocks.1', 'blocks.1.fc', 'linear']", "blocks.1.fc"),
        ("node_linear", "val_3", "", ""),
    ],
)
def test_a_path_is_found_where_there_are_traces(name, weight, scopes, path):
    assert ".".join(module_path(node(name, weight, scopes))) == path


def test_what_layers_have_in_common():
    names = ["h.0.attn.q.weight", "h.0.attn.o.weight"]
    assert common_path([node("n", name) for name in names]) == "h.0.attn"
    assert common_path([node("n", name) for name in [*names, "h.0.mlp.up.weight"]]) == "h.0"
    assert common_path([node("n", "a"), node("n", "h.0.attn.q.weight")]) == "h.0.attn.q"
    assert common_path([]) == ""
