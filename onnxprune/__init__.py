"""onnxprune: make a trained ONNX model smaller and faster, and prove it.

::

    import onnxprune

    model = onnxprune.load("model.onnx")
    result = onnxprune.prune(model, pattern="channels", target_macs=0.5)
    onnxprune.save(result.model, "small.onnx")

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.advice.run import Advice, advise
    from onnxprune.analyze import find_groups
    from onnxprune.compression.run import CompressResult, compress
    from onnxprune.containment.command import contained
    from onnxprune.data import load_data
    from onnxprune.family import Family, prune_family, save_family
    from onnxprune.family_survey import measure_family
    from onnxprune.finetuning import FinetuneResult, finetune, save_finetuned
    from onnxprune.folders.run import prune_folder
    from onnxprune.gradual_pipeline import prune_gradually
    from onnxprune.importers import import_model
    from onnxprune.measure.accuracy import validate
    from onnxprune.measure.latency import benchmark
    from onnxprune.model.io import load, save
    from onnxprune.pipeline import plan, prune, save_pruned
    from onnxprune.plans import Drift, compare_plans, load_plan, save_plan
    from onnxprune.pruning import PruneResult
    from onnxprune.quantizing.run import QuantizeResult, quantize, save_quantized
    from onnxprune.repruning import apply_plan
    from onnxprune.runtime.execution import Execution
    from onnxprune.scores.magnitude import score
    from onnxprune.survey import Sensitivity, measure_sensitivity
    from onnxprune.tuning import Tuning
    from onnxprune.verification import verify

#: Every public name, and the module it lives in.
_HOMES = {
    "Advice": "onnxprune.advice.run",
    "CompressResult": "onnxprune.compression.run",
    "Drift": "onnxprune.plans",
    "Execution": "onnxprune.runtime.execution",
    "Family": "onnxprune.family",
    "FinetuneResult": "onnxprune.finetuning",
    "PruneResult": "onnxprune.pruning",
    "QuantizeResult": "onnxprune.quantizing.run",
    "Sensitivity": "onnxprune.survey",
    "Tuning": "onnxprune.tuning",
    "advise": "onnxprune.advice.run",
    "apply_plan": "onnxprune.repruning",
    "benchmark": "onnxprune.measure.latency",
    "compare_plans": "onnxprune.plans",
    "compress": "onnxprune.compression.run",
    "contained": "onnxprune.containment.command",
    "find_groups": "onnxprune.analyze",
    "finetune": "onnxprune.finetuning",
    "import_model": "onnxprune.importers",
    "load": "onnxprune.model.io",
    "load_data": "onnxprune.data",
    "load_plan": "onnxprune.plans",
    "measure_family": "onnxprune.family_survey",
    "measure_sensitivity": "onnxprune.survey",
    "plan": "onnxprune.pipeline",
    "prune": "onnxprune.pipeline",
    "prune_family": "onnxprune.family",
    "prune_folder": "onnxprune.folders.run",
    "prune_gradually": "onnxprune.gradual_pipeline",
    "quantize": "onnxprune.quantizing.run",
    "save": "onnxprune.model.io",
    "save_family": "onnxprune.family",
    "save_finetuned": "onnxprune.finetuning",
    "save_plan": "onnxprune.plans",
    "save_pruned": "onnxprune.pipeline",
    "save_quantized": "onnxprune.quantizing.run",
    "score": "onnxprune.scores.magnitude",
    "validate": "onnxprune.measure.accuracy",
    "verify": "onnxprune.verification",
}

__all__ = [
    "Advice",
    "CompressResult",
    "Drift",
    "Execution",
    "Family",
    "FinetuneResult",
    "PruneResult",
    "QuantizeResult",
    "Sensitivity",
    "Tuning",
    "advise",
    "apply_plan",
    "benchmark",
    "compare_plans",
    "compress",
    "contained",
    "find_groups",
    "finetune",
    "import_model",
    "load",
    "load_data",
    "load_plan",
    "measure_family",
    "measure_sensitivity",
    "plan",
    "prune",
    "prune_family",
    "prune_folder",
    "prune_gradually",
    "quantize",
    "save",
    "save_family",
    "save_finetuned",
    "save_plan",
    "save_pruned",
    "save_quantized",
    "score",
    "validate",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
