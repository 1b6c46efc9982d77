"""The pass for Olive, in Olive where that is installed, and against a stand-in of its interface anywhere."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import mlp, residual_net

from onnxprune import load_plan, prune, verify

MODULE = "onnxprune.integrations.olive"
HAS_OLIVE = importlib.util.find_spec("olive") is not None
needs_olive = pytest.mark.skipif(not HAS_OLIVE, reason="olive-ai is not installed")


class StandIn:
    """What the pass uses of Olive 0.13, as its sources have it, with nothing behind it."""

    class OlivePassError(Exception):
        pass

    class DataConfig:
        """Samples of a configuration; Olive makes a calibration data reader of them."""

        def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
            self.batches = batches

        @classmethod
        def model_validate(cls, config: dict[str, Any]) -> StandIn.DataConfig:
            return cls(config["batches"])

        def to_data_container(self) -> StandIn.DataConfig:
            return self

        def create_calibration_dataloader(self, model_path: str, io_config: object) -> Any:
            batches = iter(self.batches)
            return types.SimpleNamespace(get_next=lambda: next(batches, None))

    class PassConfigParam:
        def __init__(
            self, type_: Any, required: bool = False, default_value: Any = None, description: str = ""
        ) -> None:
            self.type_, self.default_value = type_, default_value

    class ONNXModelHandler:
        io_config = None
        external_initializers_file_name: str | None = None
        constant_inputs_file_name: str | None = None

        def __init__(
            self,
            model_path: str,
            onnx_file_name: str | None = None,
            inference_settings: Any = None,
            use_ort_extensions: bool = False,
            model_attributes: dict[str, Any] | None = None,
        ) -> None:
            self.model_path = str(Path(model_path) / onnx_file_name) if onnx_file_name else model_path
            self.inference_settings, self.use_ort_extensions = inference_settings, use_ort_extensions
            self.model_attributes = model_attributes

    class Pass:
        def __init__(self, accelerator_spec: Any, config: Any) -> None:
            self.config = config

        @classmethod
        def default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
            config: dict[str, Any] = cls._default_config(accelerator_spec)  # type: ignore[attr-defined]
            return config

        @classmethod
        def get_config_params(cls, accelerator_spec: Any, config: Any, disable_search: bool) -> Any:  # noqa: ARG003
            usual = {
                name: param.default_value for name, param in cls.default_config(accelerator_spec).items()
            }
            return types.SimpleNamespace(**{**usual, **config}, model_dump=lambda: {**usual, **config})

        def run(self, model: Any, output_model_path: str) -> Any:
            return self._run_for_config(model, self.config, output_model_path)  # type: ignore[attr-defined]

    @staticmethod
    def resolve_onnx_path(file_or_dir_path: str, model_filename: str = "model.onnx") -> str:
        Path(file_or_dir_path).mkdir(parents=True, exist_ok=True)
        return str(Path(file_or_dir_path) / model_filename)


#: Where Olive keeps what the pass uses.
HOMES = {
    "olive.data.config": ("DataConfig",),
    "olive.exception": ("OlivePassError",),
    "olive.model": ("ONNXModelHandler",),
    "olive.model.utils": ("resolve_onnx_path",),
    "olive.passes": ("Pass",),
    "olive.passes.pass_config": ("PassConfigParam",),
}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, imported with the stand-in in Olive's place."""
    for name in ("olive", "olive.data", *HOMES):
        stand_in = types.ModuleType(name)
        for attribute in HOMES.get(name, ()):
            setattr(stand_in, attribute, getattr(StandIn, attribute))
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


def run(module: Any, model: Path, output: Path, handler: dict[str, Any] | None = None, **options: Any) -> Any:
    config = module.OnnxPrune.get_config_params(None, options)
    given = StandIn.ONNXModelHandler(str(model), **(handler or {}))
    return module.OnnxPrune(None, config).run(given, str(output))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    onnx.save(residual_net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_a_handler_becomes_a_handler_of_a_smaller_file(module, model, tmp_path):
    settings = {"session_options": {"intra_op_num_threads": 1}}
    attributes = {"task": "digits", "additional_files": ["tokenizer.json"]}
    handler = {"inference_settings": settings, "model_attributes": attributes}
    found = run(module, model, tmp_path / "cache", handler, target_macs=0.5)
    folder = tmp_path / "cache"
    assert Path(found.model_path) == folder / "model.onnx"
    assert verify(found.model_path, against=model, plan=load_plan(folder / "onnxprune-1.plan")).passed
    report = json.loads((folder / "onnxprune-1.json").read_text())
    assert report["command"] == "prune"
    assert {check["passed"] for check in report["checks"]} == {True}
    beside = [str(folder / name) for name in ("onnxprune-1.plan", "onnxprune-1.json")]
    assert found.model_attributes == {"task": "digits", "additional_files": ["tokenizer.json", *beside]}
    assert found.inference_settings == settings
    assert attributes["additional_files"] == ["tokenizer.json"]


def test_a_second_pass_keeps_what_the_first_one_says(module, model, tmp_path):
    first = run(module, model, tmp_path / "first", amount=0.25)
    second = run(
        module,
        Path(first.model_path),
        tmp_path / "second",
        {"model_attributes": first.model_attributes},
        pattern="2:4",
    )
    names = [Path(path).name for path in second.model_attributes["additional_files"]]
    assert names == ["onnxprune-1.plan", "onnxprune-1.json", "onnxprune-2.plan", "onnxprune-2.json"]


def test_data_as_olive_describes_it(module, model, tmp_path):
    rows = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    data = {"batches": [{"x": rows[:16]}, {"x": rows[16:]}]}
    found = run(module, model, tmp_path / "a", data_config=data, amount=0.5, recover="reconstruct")
    np.savez(tmp_path / "rows.npz", x=rows)
    same = run(
        module, model, tmp_path / "b", data=str(tmp_path / "rows.npz"), amount=0.5, recover="reconstruct"
    )
    assert Path(found.model_path).read_bytes() == Path(same.model_path).read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amount": 0.5, "target_macs": 0.5}, "amount"),
        ({"pattern": "chanels", "amount": 0.5}, "unknown pattern"),
        ({"amount": 0.5, "data": "random", "data_config": {"batches": []}}, "exclude each other"),
        ({"pattern": "experts", "amount": 0.5}, "nothing to remove"),
        ({"target_macs": 0.0001}, "0.0001"),
    ],
)
def test_what_cannot_be_done_ends_the_workflow(module, model, tmp_path, options, message):
    """Olive ends at a ValueError; at other errors it may go on and end well, without a model."""
    with pytest.raises(ValueError, match=message) as error:
        run(module, model, tmp_path / "cache", **options)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*.onnx"))


def test_a_search_passes_over_a_target_if_that_is_asked_for(module, model, tmp_path):
    with pytest.raises(StandIn.OlivePassError):
        run(module, model, tmp_path / "cache", target_macs=0.0001, may_fail=True)
    with pytest.raises(ValueError, match="unknown pattern"):  # a mistake stays one
        run(module, model, tmp_path / "cache", pattern="chanels", amount=0.5, may_fail=True)


def test_an_unknown_option_is_refused(module, model, tmp_path):
    with pytest.raises(ValueError, match=r"no option .recovr. .did you mean .recover."):
        run(module, model, tmp_path / "cache", amount=0.5, recovr="bias")


def test_weights_in_another_file_are_refused(module, model, tmp_path, monkeypatch):
    monkeypatch.setattr(StandIn.ONNXModelHandler, "external_initializers_file_name", "weights.npz")
    with pytest.raises(ValueError, match="prune before"):
        run(module, model, tmp_path / "cache", amount=0.5)


def test_the_options_are_those_of_prune(module):
    """A new option of prune needs a decision here: what a workflow can't say is what runs in Python."""
    options = set(inspect.signature(prune).parameters) - {"model", "progress"}
    assert set(module.OPTIONS) == options
    usual = module.OnnxPrune.default_config(None)
    assert usual["pattern"].default_value == "channels"
    assert {"data_config", "external_data", "sparse_storage", "may_fail"} <= usual.keys()


@needs_olive
def test_the_stand_in_is_like_olive():
    for home, names in HOMES.items():
        there = importlib.import_module(home)
        for name in names:
            ours, theirs = getattr(StandIn, name), getattr(there, name)
            if name in ("ONNXModelHandler", "PassConfigParam", "resolve_onnx_path"):
                known = inspect.signature(theirs).parameters
                assert set(inspect.signature(ours).parameters) <= set(known), name


@needs_olive
@pytest.mark.long
def test_a_workflow_prunes_and_then_quantizes(tmp_path):
    onnx.save(mlp(), tmp_path / "net.onnx")
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": "net.onnx"},
        "passes": {
            "prune": {"type": "OnnxPrune", "amount": 0.5},
            "quantize": {"type": "OnnxDynamicQuantization"},
        },
        "output_dir": "small",
        "cache_dir": "cache",
    }
    (tmp_path / "workflow.json").write_text(json.dumps(workflow))
    commands = (
        [sys.executable, "-m", MODULE, "packages.json"],
        [
            sys.executable,
            "-m",
            "olive",
            "run",
            "--config",
            "workflow.json",
            "--package-config",
            "packages.json",
        ],
    )
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    plan = load_plan(tmp_path / "small" / "onnxprune-1.plan")
    assert plan.removed
    stored = onnx.load(tmp_path / "small" / "model.onnx")
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= {node.op_type for node in stored.graph.node}
    assert (tmp_path / "small" / "onnxprune-1.json").exists()
