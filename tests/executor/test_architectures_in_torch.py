"""Whole networks of every kind, as both exporters write them and as ONNX Runtime fuses them, in torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

pytest.importorskip("torch", reason="the architectures are torch modules")
pytest.importorskip("onnxscript", reason="the exporters need it")

import torch
from architectures import ARCHITECTURES, build, export
from executing import check_forward, relative_error

from onnxprune.executor.module import OnnxModule
from onnxprune.model.nodes import nodes_in
from onnxprune.runtime import save_optimized


def exported(name: str, exporter: Any = "ts") -> ir.Model:
    return ir.from_proto(onnx.load_from_string(export(name, exporter)))


def fused(model: ir.Model, folder: Path) -> ir.Model:
    save_optimized(model, folder / "fused.onnx", level="extended")
    return ir.load(folder / "fused.onnx")


def feeds(name: str, batch: int) -> dict[str, np.ndarray]:
    """The inputs that a network is exported with, as often as the batch asks for."""
    _, inputs, axes = build(name)
    rows = [value[torch.arange(batch) % len(value)] for value in inputs]
    return {key: value.numpy() for key, value in zip(axes, rows, strict=True)}


@pytest.mark.long
@pytest.mark.parametrize("exporter", ["ts", "dynamo"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_exported_and_fused(name, exporter, tmp_path):
    model = exported(name, exporter)
    for form in (model, fused(model, tmp_path)):
        for batch in (2, 3):
            check_forward(form, feeds(name, batch))


def test_onnx_runtime_fuses(tmp_path):
    """The long test says nothing of fused operators if there are none."""
    form = fused(exported("encoder"), tmp_path)
    found = {node.op_type for node in nodes_in(form.graph) if node.domain == "com.microsoft"}
    assert {"BiasGelu", "FusedMatMul"} <= found
    check_forward(form, feeds("encoder", 2))


@pytest.mark.parametrize("name", ["residual_basic", "mixer"])
def test_a_fused_network_has_the_gradients_of_its_module(name, tmp_path):
    module, (x,), (key,) = build(name)
    given = x.clone().requires_grad_()
    module(given).square().sum().backward()
    own = x.clone().requires_grad_()
    found = OnnxModule(fused(exported(name), tmp_path)).eval()({key: own})
    sum(value.square().sum() for value in found.values()).backward()  # type: ignore[union-attr]
    assert given.grad is not None
    assert own.grad is not None
    assert relative_error(own.grad.numpy(), given.grad.numpy()) < 1e-4
