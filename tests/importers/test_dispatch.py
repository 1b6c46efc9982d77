"""Imports from end to end; each export takes about a second."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from torch import nn  # noqa: E402
from torch.nn.utils import prune  # noqa: E402

from onnxprune.errors import ImporterError, MissingExtra, UsageError  # noqa: E402
from onnxprune.importers import InputShape, import_model  # noqa: E402


class Convolutions(nn.Module):
    """Convolutions with batch norms that do something, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.body(image), 1))


def trained(module: nn.Module, *shape: int) -> nn.Module:
    """Batch norms get statistics of their own, and trained scales."""
    torch.manual_seed(0)
    for _ in range(3):
        module(torch.randn(shape) * 2 + 1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.5, 0.5)
    return module


@pytest.fixture
def convolutions() -> nn.Module:
    return trained(Convolutions(), 4, 3, 8, 8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_a_module_in_training_mode(convolutions: nn.Module) -> None:
    result = import_model(convolutions, input_shapes=[(1, 3, 8, 8)])

    assert convolutions.training  # the copy was switched, not the original
    assert op_types(result.model).count("Conv") == 2
    assert "BatchNormalization" not in op_types(result.model)
    assert result.max_relative_difference is not None
    assert 0 < result.max_relative_difference < 1e-5
    assert result.max_abs_difference is not None
    assert 0 < result.max_abs_difference < 1e-4
    assert result.dynamic_axes["image"] == {0: "batch"}
    assert result.compared_batch_sizes == (1, 2, 5)
    assert (result.baked_masks, result.notes) == ((), ())
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)


def test_batch_norms_stay_where_asked(convolutions: nn.Module) -> None:
    result = import_model(convolutions, input_shapes={"image": (1, 3, 8, 8)}, keep_batch_norm=True)

    operators = op_types(result.model)
    assert operators.count("BatchNormalization") == 2
    clutter = {"Shape", "Expand", "CastLike", "Constant", "Identity"}
    assert not clutter & set(operators)
    names = set(result.model.graph.initializers)
    assert {"body.1.running_mean", "body.1.running_var", "body.1.weight", "body.4.bias"} <= names
    assert set(result.model.opset_imports) == {""}
    stored = result.model.graph.initializers["body.1.running_var"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), convolutions.body[1].running_var.numpy())
    onnx.checker.check_model(ir.to_proto(result.model), full_check=True)


def test_the_result_names_no_path(convolutions: nn.Module) -> None:
    result = import_model(convolutions, input_shapes=[(1, 3, 8, 8)], dynamic_batch=False)

    stored = ir.to_proto(result.model).SerializeToString()
    assert os.fsencode(Path(__file__).parent) not in stored
    assert b"site-packages" not in stored
    assert any("name_scopes" in key for node in result.model.graph for key in node.metadata_props)


def test_the_same_import_gives_the_same_bytes(convolutions: nn.Module) -> None:
    first, second = (
        ir.to_proto(import_model(convolutions, input_shapes=[(1, 3, 8, 8)]).model).SerializeToString(
            deterministic=True
        )
        for _ in range(2)
    )

    assert first == second


def test_a_fixed_batch_where_asked(convolutions: nn.Module) -> None:
    result = import_model(convolutions, input_shapes=[(3, 3, 8, 8)], dynamic_batch=False)

    assert result.dynamic_axes == {}
    assert list(result.model.graph.inputs[0].shape or ()) == [3, 3, 8, 8]
    assert result.compared_batch_sizes == (3, 3, 3)
    assert result.notes == ()


class BatchInBranch(nn.Module):
    """Computes something else at batch 1: a graph with a dynamic batch can't say that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] == 1 else x


class RowOfConstants(nn.Module):
    """Exports with a dynamic batch; only the comparison at other sizes finds out that it has four rows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(4.0).reshape(4, 1)[: x.shape[0]]


@pytest.mark.parametrize("module", [BatchInBranch(), RowOfConstants()])
def test_falls_back_to_a_fixed_batch_and_says_why(module: nn.Module) -> None:
    result = import_model(module, torch.randn(1, 4))

    assert result.dynamic_axes == {}
    (note,) = result.notes
    assert note.startswith("the batch is fixed at 1; with a dynamic one, ")
    assert "\n" not in note


class Nested(nn.Module):
    """Inputs in a dict and a list, a constant, and outputs in a dict."""

    def forward(self, given: dict, *, scale: torch.Tensor, negate: bool = False) -> dict[str, torch.Tensor]:
        total = (given["a"] + given["b"][0]) * scale
        return {"total": -total if negate else total, "b": given["b"][0] + 1}


def test_nested_inputs_outputs_and_constants() -> None:
    given = {"a": torch.randn(2, 3), "b": [torch.randn(2, 3)]}

    result = import_model(Nested(), {"scale": torch.randn(2, 1), "negate": True, "given": given})

    assert len(result.model.graph.inputs) == 3
    assert len(result.model.graph.outputs) == 2
    assert [axes[0] for axes in result.dynamic_axes.values()] == ["batch"] * 5


class DictionaryAlone(nn.Module):
    """A dict as the last positional argument, which torch would take for keyword arguments."""

    def forward(self, given: dict) -> torch.Tensor:
        return given["a"] + given["b"]


def test_a_dict_as_the_only_argument() -> None:
    result = import_model(DictionaryAlone(), ({"a": torch.randn(2, 3), "b": torch.randn(2, 3)},))

    assert op_types(result.model) == ["Add"]
    assert result.notes == ()


def test_inputs_without_a_common_batch_stay_as_they_are() -> None:
    class Matrix(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x @ y

    result = import_model(Matrix(), (torch.randn(2, 3), torch.randn(3, 5)))

    assert result.notes == ("the batch is fixed: the inputs do not have a first size in common",)
    assert result.compared_batch_sizes == (0, 0, 0)


def test_integer_inputs_from_shapes() -> None:
    module = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 2))

    result = import_model(module, input_shapes=[InputShape((1, 6), "int64")])

    assert result.model.graph.inputs[0].dtype is ir.DataType.INT64
    assert result.max_relative_difference is not None


def test_masks_are_baked_and_reported() -> None:
    # 64 x 64 and up stay a multiplication with the mask when exported as they are
    module = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    prune.l1_unstructured(module[0], "weight", amount=0.75)

    result = import_model(module, input_shapes=[(1, 128)])

    assert op_types(result.model) == ["Gemm", "Relu", "Gemm"]
    assert result.baked_masks == ("0.weight (pruned): 75.0% zeros",)
    weight = result.model.graph.initializers["0.weight"].const_value
    assert weight is not None
    assert np.count_nonzero(weight.numpy() == 0) == 128 * 96


@pytest.mark.parametrize("opset", [18, 21])
def test_the_opset_asked_for(opset: int) -> None:
    result = import_model(nn.Linear(3, 2), input_shapes=[(1, 3)], opset=opset)

    assert result.model.opset_imports[""] == opset


FACTORY = """
import torch
from torch import nn

print("loading")

def build():
    return nn.Linear(4, 2)

class Shifted(nn.Module):
    def forward(self, x):
        return x + 1

ready = Shifted()
number = 5

def no_module():
    return [1]

def example_inputs():
    return torch.zeros(1, 4)
"""


def test_factories_classes_and_modules_by_name(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "my_models.py").write_text(FACTORY)

    first = import_model("my_models:build", input_shapes=[(1, 4)], seed=3)
    torch.rand(5)  # moves torch's own generator on
    second = import_model("my_models:build", input_shapes=[(1, 4)], seed=3)
    by_class = import_model("my_models:Shifted")
    by_object = import_model("my_models:ready")

    assert first.dynamic_axes["input"] == {0: "batch"}
    weights = [result.model.graph.initializers["weight"].const_value for result in (first, second)]
    assert all(weight is not None for weight in weights)
    np.testing.assert_array_equal(weights[0].numpy(), weights[1].numpy())  # what a factory draws is seeded
    assert op_types(by_class.model) == op_types(by_object.model) == ["Add"]
    assert capfd.readouterr().out == ""  # the module's print, and torch's remarks


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("number", "my_models:number is a int: name a function, a class or a module"),
        ("no_module", "my_models:no_module gave a list, not a torch.nn.Module"),
        ("example_inputs", "gave a Tensor"),
    ],
)
def test_names_that_are_no_factories(folder: Path, name: str, message: str) -> None:
    (folder / "my_models.py").write_text(FACTORY)

    with pytest.raises(ImporterError, match=message):
        import_model(f"my_models:{name}")


def test_asks_for_the_shapes_of_inputs() -> None:
    with pytest.raises(UsageError, match="Linear: the shapes of the inputs are not known"):
        import_model(nn.Linear(2, 2))


def test_a_module_that_cannot_run_on_the_inputs() -> None:
    with pytest.raises(ImporterError, match=r"the module raised RuntimeError on inputs of shape \[1, 3\]"):
        import_model(nn.Linear(2, 2), input_shapes=[(1, 3)])


class DataDependent(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if float(x.sum()) > 0 else x


def test_a_module_that_cannot_be_exported_says_so_in_one_line() -> None:
    with pytest.raises(ImporterError, match=r"^torch.onnx.export failed: [^\n]+$"):
        import_model(DataDependent(), torch.randn(2, 4))


def test_a_random_module_differs_from_its_export() -> None:
    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    with pytest.raises(ImporterError, match="the export differs from the module"):
        import_model(Noisy(), torch.randn(2, 4))


def save_program(path: Path, module: nn.Module) -> torch.export.ExportedProgram:
    program = torch.export.export(
        module.eval(), (torch.randn(2, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, path)
    return program


def test_exported_programs_from_files_only_where_trusted(tmp_path: Path) -> None:
    program = save_program(tmp_path / "model.pt2", nn.Linear(4, 2))

    with pytest.raises(ImporterError, match=r"can run code that the file holds.*--trust-input-code"):
        import_model(tmp_path / "model.pt2")
    from_file = import_model(str(tmp_path / "model.pt2"), trust_input_code=True)
    in_memory = import_model(program)

    for result in (from_file, in_memory):
        assert op_types(result.model) == ["Gemm"]
        assert result.compared_batch_sizes == (1, 2, 5)
        assert result.max_relative_difference is not None
        assert result.max_relative_difference < 1e-5


def test_the_result_shares_no_weights_with_a_program(tmp_path: Path) -> None:
    program = save_program(tmp_path / "model.pt2", nn.Linear(4, 2))
    result = import_model(program)
    before = ir.to_proto(result.model).SerializeToString()

    with torch.no_grad():
        for weight in program.state_dict.values():
            weight.fill_(7)

    assert ir.to_proto(result.model).SerializeToString() == before


def test_an_untrusted_program_is_not_even_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("torch.export.load was called")

    monkeypatch.setattr(torch.export, "load", refuse)
    (tmp_path / "model.pt2").write_bytes(b"anything")

    with pytest.raises(ImporterError, match="trust"):
        import_model(tmp_path / "model.pt2")


def test_a_damaged_program(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"not a zip file")
    (tmp_path / "folder.pt2").mkdir()

    with pytest.raises(ImporterError, match=r"folder\.pt2: is no regular file"):
        import_model(tmp_path / "folder.pt2", trust_input_code=True)
    with pytest.raises(ImporterError, match=r"model.pt2: torch.export.load failed: [^\n]+$"):
        import_model(tmp_path / "model.pt2", trust_input_code=True)
    with pytest.raises(ImporterError, match="no such file"):
        import_model(tmp_path / "other.pt2", trust_input_code=True)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "weights.bin"])
def test_checkpoints_are_refused_with_advice(name: str) -> None:
    with pytest.raises(ImporterError, match=r"no graph.*package.module:factory"):
        import_model(name)


@pytest.mark.parametrize("missing", ["torch", "onnxscript"])
def test_without_torch_one_line_says_what_to_install(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == missing else real(name, *rest)
    )

    with pytest.raises(MissingExtra, match=rf"needs {missing}: pip install 'onnxprune\[torch\]'"):
        import_model("my_models:build")


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not both"):
        import_model(nn.Linear(2, 2), torch.zeros(1, 2), input_shapes=[(1, 2)])
    with pytest.raises(UsageError, match="PyTorch sources only"):
        import_model(tmp_path / "model.onnx", opset=18)
    with pytest.raises(UsageError, match="can't import a int"):
        import_model(5)


def test_onnx_files_pass_through_without_torch(tmp_path: Path) -> None:
    result = import_model(nn.Linear(3, 2), input_shapes=[(1, 3)])
    onnx.save(ir.to_proto(result.model), tmp_path / "model.onnx")
    script = """
import sys
from onnxprune.importers import import_model
assert not {"onnx_ir", "onnxruntime"} & set(sys.modules), "importing the package loads heavy modules"
result = import_model("model.onnx")
assert [node.op_type for node in result.model.graph] == ["Gemm"]
assert (result.max_abs_difference, result.compared_batch_sizes) == (None, ())
assert result.dynamic_axes["input"] == {0: "batch"}
assert "torch" not in sys.modules
"""

    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
