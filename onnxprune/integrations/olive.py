"""A pass for Microsoft Olive: prune, prove and verify between Olive's own passes.

Olive imports this module by the path that a package configuration gives, and
``python -m onnxprune.integrations.olive packages.json`` writes that file, with everything that Olive itself
knows. Nothing else imports this module, because it needs ``olive``.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata
from inspect import signature
from pathlib import Path
from typing import Any

from olive.data.config import DataConfig
from olive.exception import OlivePassError
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.passes import Pass
from olive.passes.pass_config import PassConfigParam

from onnxprune.data import DataReader
from onnxprune.errors import LimitMissed, ModelError, NothingToPrune, OnnxPruneError, UsageError
from onnxprune.messages import one_line, quoted, visible
from onnxprune.model.atomic import write_whole
from onnxprune.model.io import load
from onnxprune.pipeline import prune, save_pruned
from onnxprune.registry import did_you_mean
from onnxprune.report.as_json import document, to_text

#: Options of `onnxprune.prune` that a workflow may give, with the types that its JSON has.
OPTIONS: dict[str, Any] = {
    "pattern": str,
    "amount": float,
    "target_macs": float,
    "target_params": float,
    "target_size": float,
    "target_latency": float | str,
    "score": str,
    "before": str,
    "scope": str,
    "align": int | str,
    "protect": list[str],
    "allow_inexact": bool,
    "floor": float,
    "data": str,
    "seed": int,
    "input_shapes": dict[str, list[int]],
    "recover": str,
    "rounds": int,
    "cache": str,
    "jobs": int,
    "scheduler": str,
    "batch": int,
    "memory_limit": int,
    "threads": int,
    "latency_percentile": float,
    "latency_batch": int,
    "provider": str,
    "provider_options": dict[str, str],
    "time_limit": float,
}
#: What else it may give: how the file is stored, and data as Olive describes it.
_STORAGE = {
    "external_data": "Weights beside the model or in it; as they were by default.",
    "sparse_storage": "Weights as sparse initializers where that is smaller; as they were by default.",
}


class OnnxPrune(Pass):  # type: ignore[misc] # untyped where olive is not installed
    """Prune an ONNX model; the result is proved and verified, and has its plan and report beside it.

    The options are those of `onnxprune.prune`. ``data_config`` takes the place of ``data``: its samples come
    without labels, as Olive's calibration has them.

    What can't be done ends the workflow: Olive ends at a `ValueError`, while it passes over most other errors
    and then ends well without a model. With ``may_fail``, a target that can't be met is an `OlivePassError`,
    which ends the point of a search only.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, PassConfigParam]:  # noqa: ARG003 # Olive's
        usual = {name: parameter.default for name, parameter in signature(prune).parameters.items()}
        config = {
            name: PassConfigParam(
                type_=type_,
                default_value=list(usual[name]) if isinstance(usual[name], tuple) else usual[name],
                description=f"As {name} of onnxprune.prune.",
            )
            for name, type_ in OPTIONS.items()
        }
        config["data_config"] = PassConfigParam(
            type_=DataConfig | dict, default_value=None, description="Samples, in place of data."
        )
        for name, description in _STORAGE.items():
            config[name] = PassConfigParam(type_=bool, default_value=None, description=description)
        config["may_fail"] = PassConfigParam(
            type_=bool, default_value=False, description="In a search, pass over targets that can't be met."
        )
        return config

    @classmethod
    def get_config_params(
        cls, accelerator_spec: Any, config: Any = None, disable_search: bool | None = False
    ) -> Any:
        """Refuse keys that this pass does not have, which Olive passes over, before it looks at the others.

        Raises:
            ValueError: naming the key, and the one that was perhaps meant.
        """
        known = cls.default_config(accelerator_spec)
        for name in config if isinstance(config, dict) else ():
            if name not in known:
                raise ValueError(f"OnnxPrune has no option {quoted(name)}{did_you_mean(name, known)}")
        return super().get_config_params(accelerator_spec, config, disable_search)

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        """Prune the file of one handler, and return a handler of the new file.

        Raises:
            ValueError: whatever is an error of `onnxprune.prune` or `onnxprune.save_pruned`.
            OlivePassError: likewise, where ``may_fail`` allows it.
        """
        try:
            return _pruned(model, config.model_dump(), config.data_config, output_model_path)
        except OnnxPruneError as error:
            passed_over = config.may_fail and isinstance(error, (LimitMissed, NothingToPrune))
            raise (OlivePassError if passed_over else ValueError)(str(error)) from error


def _pruned(model: Any, given: dict[str, Any], data_config: Any, output_model_path: str) -> ONNXModelHandler:
    """Prune, prove, write and verify; return a handler of the file, its plan and its report beside it."""
    if not isinstance(model, ONNXModelHandler):
        raise ModelError(f"OnnxPrune takes ONNX models, not {type(model).__name__}: convert it first")
    source, target = Path(model.model_path), Path(resolve_onnx_path(output_model_path, "model.onnx"))
    if model.external_initializers_file_name or model.constant_inputs_file_name:
        raise ModelError(
            f"{visible(source)}: weights are inputs, kept in another file: prune before the pass that did it"
        )
    options = {name: given[name] for name in OPTIONS}
    if data_config is not None:
        if options["data"] is not None:
            raise UsageError("data and data_config exclude each other; give one")
        options["data"] = _reader(data_config, model)
    result = prune(load(source), **options)
    attributes = dict(model.model_attributes or {})
    kept = [str(path) for path in attributes.get("additional_files") or []]
    plan, written = _beside(target.parent, {Path(path).name for path in kept})
    storage = {name: given[name] for name in _STORAGE}
    report = save_pruned(result, target, against=source, plan_folder=plan, **storage)
    write_whole(written, to_text(document("prune", metadata.version("onnxprune"), report)).encode())
    # Olive carries additional files along, through the passes that follow, to its output.
    attributes["additional_files"] = [*kept, str(plan), str(written)]
    return ONNXModelHandler(
        model_path=str(target.parent),
        onnx_file_name=target.name,
        inference_settings=model.inference_settings,
        use_ort_extensions=model.use_ort_extensions,
        model_attributes=attributes,
    )


def _beside(folder: Path, taken: set[str]) -> tuple[Path, Path]:
    """Return names for a plan and a report, such as no earlier pass of the workflow has given."""
    number = 1
    while f"onnxprune-{number}.plan" in taken:
        number += 1
    return folder / f"onnxprune-{number}.plan", folder / f"onnxprune-{number}.json"


def _reader(config: Any, model: Any) -> DataReader:
    """Return the samples that a data configuration of Olive describes."""
    described = DataConfig.model_validate(config) if isinstance(config, dict) else config
    reader: DataReader = described.to_data_container().create_calibration_dataloader(
        model_path=model.model_path, io_config=model.io_config
    )
    return reader


def package_config() -> dict[str, Any]:
    """Return Olive's own package configuration with this pass added.

    It goes to ``olive run --package-config``, as a file, or to ``olive.workflows.run(package_config=...)``.
    """
    from olive.package_config import OlivePackageConfig

    known: dict[str, Any] = json.loads(
        Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8")
    )
    known["passes"]["OnnxPrune"] = {
        "module_path": f"onnxprune.integrations.olive.{OnnxPrune.__name__}",
        "supported_providers": ["*"],
        "supported_accelerators": ["*"],
        "supported_precisions": ["*"],
        "supported_algorithms": [],
        "supported_quantization_encodings": [],
        "dataset": "dataset_optional",
    }
    return known


def _write_package_config(arguments: list[str]) -> int:
    """Write `package_config` to the file that the command line names; return the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m onnxprune.integrations.olive packages.json", file=sys.stderr)
        return 2
    try:
        write_whole(Path(arguments[0]), (json.dumps(package_config(), indent=1) + "\n").encode())
    except OnnxPruneError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(_write_package_config(sys.argv[1:]))
