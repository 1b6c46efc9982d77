"""Evidence for the gates and the reports, taken once for the same models and data."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from onnxprune.compression.chain import Chain
from onnxprune.compression.folder import RunFolder, Work
from onnxprune.compression.stages import Job
from onnxprune.gates.evidence import Evidence
from onnxprune.gates.gathering import gather_evidence
from onnxprune.gates.settings import MEASURED_BY
from onnxprune.machine import graphics, processor
from onnxprune.runtime import Execution

_EVIDENCE = TypeAdapter(Evidence)


def measure(job: Job, chain: Chain, folder: RunFolder) -> Evidence:
    """Measure the original and what each stage gave.

    Raises:
        DataError, UsageError, RuntimeFailure: what `gather_evidence` raises.
    """
    recipe = job.recipe
    run, data = recipe.run, recipe.data
    evaluation = None if data.evaluation is None else job.dataset(data.evaluation)
    how = recipe.gates.model_dump(mode="json", include=set(MEASURED_BY))
    depends_on = {
        "measure": dict(chain.digests),
        "gates": [*recipe.gates.asked()], "how": how, "threads": run.threads, "batch": run.batch,
        "pairs": run.pairs, "latency_batch": run.latency_batch, "seed": run.seed, "provider": run.provider,
        "provider_options": run.provider_options, "input_shapes": run.input_shapes, "memory": run.memory,
        "data": None if evaluation is None else evaluation.digest, "metric": [data.metric, data.output],
        "machine": [processor(), graphics()],
    }  # fmt: skip

    def make(_work: Work) -> dict[str, Any]:
        evidence = gather_evidence(
            chain.models,
            evaluation=evaluation,
            metric=data.metric,
            output=data.output,
            settings=recipe.gates,
            execution=Execution(run.provider, run.threads, tuple(sorted(run.provider_options.items()))),
            batch=run.batch,
            latency_batch=run.latency_batch,
            pairs=run.pairs,
            input_shapes={name: tuple(sizes) for name, sizes in run.input_shapes.items()} or None,
            memory=run.memory,
            seed=run.seed,
            step=job.told.step,
            progress=job.share,
        )
        return {"evidence": _EVIDENCE.dump_python(evidence, mode="json", by_alias=True)}

    return _EVIDENCE.validate_python(folder.result(depends_on, make).about["evidence"])
