"""Models run in torch and by ONNX Runtime, side by side; and modules of torch beside their own exports."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxprune.errors import RuntimeFailure
from onnxprune.executor.module import OnnxModule
from onnxprune.runtime import open_session

torch = pytest.importorskip("torch")


def one_node(
    op: str,
    inputs: Mapping[str, np.ndarray],
    *,
    opset: int = 17,
    constants: Mapping[str, np.ndarray] | None = None,
    order: Sequence[str] | None = None,
    outputs: int = 1,
    domain: str = "",
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; ``order`` names its inputs ("" is omitted), by default inputs, then constants."""
    constants = constants or {}
    names = list(order) if order is not None else [*inputs, *constants]
    results = [f"y{index}" for index in range(outputs)]
    node = helper.make_node(op, names, results, "it", domain=domain, **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in results],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    if domain:
        imports.append(helper.make_opsetid(domain, 1))
    return helper.make_model(graph, opset_imports=imports, ir_version=min(10, onnx.IR_VERSION))


def in_torch(
    model: onnx.ModelProto | ir.Model, inputs: Mapping[str, np.ndarray], **options: Any
) -> list[np.ndarray]:
    """What a module makes of inputs, in the order of the outputs."""
    module = OnnxModule(_loaded(model), **options).eval()
    with torch.no_grad():
        found = module({name: torch.from_numpy(np.array(array)) for name, array in inputs.items()})
    return [found[name].numpy() for name in module.outputs]


def by_runtime(model: onnx.ModelProto | ir.Model, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What ONNX Runtime makes of them; skips the test where it has no kernel."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    try:
        session = open_session(ir.from_proto(proto), threads=1, optimize="none")
        return list(session.run(dict(inputs)).values())
    except RuntimeFailure as error:
        if "NOT_IMPLEMENTED" in str(error) or "Could not find an implementation" in str(error):
            pytest.skip(f"ONNX Runtime: {error}")
        raise


def check_forward(
    model: onnx.ModelProto | ir.Model, inputs: Mapping[str, np.ndarray], tolerance: float = 1e-5
) -> list[np.ndarray]:
    """Compare with ONNX Runtime: the norm of the difference over the norm, shapes, types, what is finite."""
    wanted, found = by_runtime(model, inputs), in_torch(model, inputs)
    for expected, got in zip(wanted, found, strict=True):
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        assert relative_error(got, expected) < tolerance
    return found


def check_gradient(model: onnx.ModelProto | ir.Model, inputs: Mapping[str, np.ndarray]) -> None:
    """Compare gradients by all float inputs with finite differences, in float64."""
    module = OnnxModule(_loaded(model), precision="float64").eval()
    given = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
    names = [name for name, value in given.items() if value.is_floating_point()]
    points = [given[name].double().requires_grad_() for name in names]

    def run(*values: Any) -> tuple[Any, ...]:
        found = module({**given, **dict(zip(names, values, strict=True))})
        return tuple(value for value in found.values() if value.is_floating_point())

    assert torch.autograd.gradcheck(run, points)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over the norm of what was expected; infinite where not both are finite."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(b)
    if (np.isfinite(a) != finite).any() or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return float("inf")
    return float(np.linalg.norm(a[finite] - b[finite]) / max(np.linalg.norm(b[finite]), 1e-30))


def exported(module: Any, example: Sequence[Any], *, dynamo: bool, opset: int | None = None) -> ir.Model:
    """A module's own export without optimisations, so that its parameters keep names and numbers."""
    module = module.eval()
    if dynamo:
        program = torch.onnx.export(
            module, tuple(example), dynamo=True, optimize=False, opset_version=opset, verbose=False
        )
        return program.model  # type: ignore[union-attr]
    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        tuple(example),
        buffer,
        dynamo=False,
        opset_version=opset or 17,
        do_constant_folding=False,
        keep_initializers_as_inputs=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    return ir.from_proto(onnx.load_from_string(buffer.getvalue()))


def _loaded(model: onnx.ModelProto | ir.Model) -> ir.Model:
    return ir.from_proto(model) if isinstance(model, onnx.ModelProto) else model


def written(model: onnx.ModelProto, folder: Path) -> Path:
    """A file with the model."""
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path
