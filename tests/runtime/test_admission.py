"""What ONNX Runtime refuses is refused before anything is worked out about it."""

from __future__ import annotations

from pathlib import Path

import model_files
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.model.io import load
from onnxprune.runtime import admission, admit


def model(
    operator: str = "Relu", *, width: int = 24, domain: str = "", **attributes: object
) -> onnx.ModelProto:
    """x @ w0, then one operator of it."""
    proto = model_files.mlp(1)
    proto.graph.node.append(
        helper.make_node(operator, ["h0"], ["y"], name="last", domain=domain, **attributes)
    )
    proto.graph.output[0].name = "y"
    if domain:
        proto.opset_import.add(domain=domain, version=1)
    return proto


def test_a_model_that_fits_together_passes_and_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = ir.from_proto(model())
    admit(taken)
    monkeypatch.setattr(admission, "_refusal", lambda _: "asked again")
    admit(taken)
    with pytest.raises(ModelError, match="asked again"):
        admit(taken.clone())  # a copy is there to be changed
    admit(admission.admitted(taken.clone()))


def test_types_that_do_not_fit_are_refused_by_the_path_that_was_given(tmp_path: Path) -> None:
    path = model_files.write(model("Not"), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"^\S+/m\.onnx: ONNX Runtime can't open it: .*float"):
        admit(load(path))
    (tmp_path / "link.onnx").symlink_to("m.onnx")
    with pytest.raises(ModelError, match=r"^\S+/link\.onnx: "):
        admit(load(tmp_path / "link.onnx"))
    with pytest.raises(ModelError, match=r"^the model: "):
        admit(ir.from_proto(model("Not")))


def test_shapes_that_do_not_fit_are_refused_without_reading_weights(tmp_path: Path) -> None:
    proto = model()
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 23
    model_files.move_out(proto.graph.initializer[0], tmp_path, "w.bin")
    read = load(model_files.write(proto, tmp_path / "m.onnx"))
    with pytest.raises(ModelError, match="can't open it"):
        admit(read)
    good = model()
    model_files.move_out(good.graph.initializer[0], tmp_path, "v.bin")
    read = load(model_files.write(good, tmp_path / "m.onnx"))
    (tmp_path / "v.bin").unlink()
    admit(read)


def test_a_kernel_that_is_missing_here_is_no_fault_of_the_model() -> None:
    proto = model("Cast", to=onnx.TensorProto.BFLOAT16)
    proto.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    proto.graph.node.append(helper.make_node("Erf", ["y"], ["z"]))
    proto.graph.output[0].name = "z"
    assert admission._refusal(ir.from_proto(proto)) is None


def test_a_refusal_because_a_weight_was_left_out_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "create", lambda *_: (_ for _ in ()).throw(RuntimeError("not constant")))
    assert admission._refusal(ir.from_proto(model())) is None
    monkeypatch.setattr(admission, "_MOST_READ_BYTES", 100)
    assert admission._refusal(ir.from_proto(model())) == "not constant"


def test_operators_of_others_may_be_looked_at_but_not_run() -> None:
    foreign = ir.from_proto(model("Mystery", domain="acme"))
    admit(foreign, to_run=False)
    with pytest.raises(ModelError, match=r"'acme\.Mystery', which ONNX Runtime does not have"):
        admit(foreign)


def test_functions_of_a_model_are_not_of_others() -> None:
    proto = model("Twice", domain="acme")
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    proto.functions.append(
        helper.make_function("acme", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    )
    admit(ir.from_proto(proto))


def test_initializers_that_are_inputs_as_well_are_admitted() -> None:
    proto = model()
    proto.graph.input.append(model_files.info("w0", 24, 24))
    admit(ir.from_proto(proto))
    proto.ir_version = 3
    admit(ir.from_proto(proto))


def test_strings_stay_with_the_model() -> None:
    words = helper.make_tensor("words", onnx.TensorProto.STRING, [300], [b"word"] * 300)
    proto = model()
    proto.graph.initializer.append(words)
    proto.graph.node.append(helper.make_node("Identity", ["words"], ["same"]))
    admit(ir.from_proto(proto))
    assert np.prod(words.dims) == 300
