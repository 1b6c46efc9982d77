"""Records of runs, made by hand, that tests of reports and gates share.

====================  ========================================================================
function              the record
====================  ========================================================================
``passing_record``    a small residual network, pruned, repaired and quantized; every part there
``failing_record``    the same, with a gate and a check that failed, and a baseline it is worse than
``unclear_record``    the same on few samples: a gate that can't be decided
``hostile_record``    names and texts that want to be markup, commands or cursor movements
``bare_record``       nothing that may be left out
``large_record``      a network of 300 layers, every part as long as it gets
====================  ========================================================================
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

from onnxprune.record import (
    AccuracyRecord,
    BaselineRecord,
    CheckRecord,
    CurveRecord,
    Environment,
    FileRecord,
    GateRecord,
    Interval,
    LatencyRecord,
    LayerRecord,
    MemoryRecord,
    ModelRecord,
    PointRecord,
    RecipeRecord,
    Record,
    Skip,
    StageRecord,
    SubsetRecord,
)

RECIPE = """\
[model]
path = "digits_residual.onnx"

[data]
calibration = "digits/calibration.npz"
evaluation = "digits/evaluation.npz"
metric = "top1"

[run]
folder = "run"
seed = 0

[[stages]]
kind = "prune"
pattern = "channels"
target_macs = 0.5
recover = "reconstruct"

[[stages]]
kind = "quantize"
form = "int8"

[gates]
accuracy_drop = 0.01
latency_ratio = 0.8
size_ratio = 0.2
"""

#: What a model file may call its parts: markup, a script, right-to-left override, commands, and no end.
HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "conv\u202egnp.exe\u2066/w",
    "layer." + "x" * 293,
    "a|b`c`[link](http://example.org)![i](http://example.org/p.png)",
    "@everyone #1 **bold** ~~gone~~ <!-- open",
    "::error file=a::stop\n::set-output name=b::c",
    "\x1b[31mred\x07\x00\x0b",
    "\"'&<>]]></style></svg>",
    "{{ 7 * 7 }}{% for x in y %}",
    "=cmd|'/c calc'!A0",
    "\\|@everyone [a](b) | <b>",
)


def digest(text: str) -> str:
    """Return a digest that looks like one and is the same each time."""
    return hashlib.sha256(text.encode()).hexdigest()


def proportion(value: float, count: int) -> Interval:
    """Return a share with its 95 % interval by Wilson's formula."""
    z = 1.96
    centre = (value + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(value * (1 - value) / count + z * z / (4 * count * count))
    return Interval(value=value, low=min(value, centre - half), high=max(value, centre + half), count=count)


def times(median_ms: float, seed: int, count: int = 200) -> tuple[float, ...]:
    """Return times of runs as they come: close to the median, with a tail."""
    random = np.random.default_rng(seed)
    noise = 1 + 0.015 * random.standard_normal(count) + 0.04 * random.exponential(1, count) ** 2
    return tuple(float(round(time, 5)) for time in median_ms * noise / np.median(noise))


def timed_model(
    name: str, cost: tuple[int, int, int, int], sparsity: float, accuracy: Interval, ratio: float, seed: int
) -> ModelRecord:
    """Return a model with times; ``cost`` is (params, macs, bytes, zstd bytes)."""
    runs = times(2.41 * ratio, seed)
    return ModelRecord(
        name=name,
        sha256=digest(name),
        params=cost[0],
        macs=cost[1],
        size_bytes=cost[2],
        zstd_bytes=cost[3],
        sparsity=sparsity,
        accuracy=accuracy,
        latency_ratio=Interval(value=ratio, low=ratio - 0.011, high=ratio + 0.013, count=200),
        latency_ms=float(np.median(runs)),
        latency_p95_ms=float(np.quantile(runs, 0.95)),
        latency_samples_ms=runs,
    )


def _models(count: int = 10_000, last: float = 0.9834) -> tuple[ModelRecord, ...]:
    return (
        timed_model(
            "original", (272_474, 41_211_904, 1_098_231, 1_012_877), 0.0, proportion(0.9871, count), 1.0, 1
        ),
        timed_model(
            "prune", (121_032, 20_544_768, 491_007, 451_302), 0.0, proportion(0.9842, count), 0.564, 2
        ),
        timed_model(
            "quantize", (121_032, 20_544_768, 139_778, 118_940), 0.031, proportion(last, count), 0.371, 3
        ),
    )


def _stages() -> tuple[StageRecord, ...]:
    return (
        StageRecord(
            name="prune",
            kind="prune",
            options={"pattern": "channels", "target_macs": 0.5, "recover": "reconstruct"},
            seconds=41.3,
            summary="removed 118 of 296 channels; 0.499 of the MACs are left",
            sections={
                "cost": [
                    {"what": "parameters", "before": 272_474, "after": 121_032, "ratio": 0.444},
                    {"what": "MACs", "before": 41_211_904, "after": 20_544_768, "ratio": 0.499},
                ],
                "repair": {
                    "method": "reconstruct",
                    "rows": 8192,
                    "error_before": 0.231,
                    "error_after": 0.0412,
                },
            },
            checks=(
                CheckRecord(
                    name="exact", passed=True, detail="largest difference 2.4e-06 on 4 random inputs"
                ),
                CheckRecord(
                    name="same interface", passed=True, detail="inputs and outputs as in the original"
                ),
            ),
            skipped=(Skip(name="stem.weight", reason="its channels reach the graph input"),),
        ),
        StageRecord(
            name="quantize",
            kind="quantize",
            options={"form": "int8"},
            reused=True,
            seconds=12.9,
            summary="15 of 16 layers hold int8 weights; one stays float",
            sections={"layers": [{"layer": "fc_node", "bits": 32, "error": 0.0121, "why": "too sensitive"}]},
            checks=(CheckRecord(name="zeros kept", passed=True, detail="3,752 zeros, all kept"),),
            skipped=(
                Skip(name="fc_node", reason="it stays float: with int8 the metric falls by 0.8 points"),
            ),
        ),
    )


def _gates() -> tuple[GateRecord, ...]:
    return (
        GateRecord(
            name="accuracy_drop",
            requirement="at most 0.01 below the original",
            limit=0.01,
            measured=Interval(value=0.0037, low=0.0015, high=0.0059, count=10_000),
            verdict="pass",
            detail="top1 fell by 0.0037 (0.0015 to 0.0059) on 10,000 samples",
        ),
        GateRecord(
            name="latency_ratio",
            requirement="at most 0.8 of the original's time",
            limit=0.8,
            measured=Interval(value=0.371, low=0.36, high=0.384, count=200),
            verdict="pass",
            detail="0.371 (0.360 to 0.384) of the original's time in 200 pairs",
        ),
        GateRecord(
            name="size_ratio",
            requirement="at most 0.2 of the original's bytes",
            limit=0.2,
            measured=0.1273,
            verdict="pass",
            detail="139,778 of 1,098,231 bytes",
        ),
        GateRecord(
            name="operators",
            requirement="only of ai.onnx",
            limit=["ai.onnx"],
            measured="ai.onnx",
            verdict="pass",
            detail="11 operators, all of ai.onnx 17",
        ),
    )


def _accuracy(count: int = 10_000, last: float = 0.9834) -> AccuracyRecord:
    def subset(name: str, kind: str, original: float, final: float, size: int) -> SubsetRecord:
        change = final - original
        spread = 1.96 * math.sqrt(0.006 / size)
        return SubsetRecord(
            name=name,
            kind=kind,  # type: ignore[arg-type]
            original=proportion(original, size),
            final=proportion(final, size),
            change=Interval(value=change, low=change - spread, high=change + spread, count=size),
        )

    return AccuracyRecord(
        metric="top1",
        higher_is_better=True,
        compared_with="labels",
        output="logits",
        samples=count,
        subsets=(
            subset("all samples", "all", 0.9871, last, count),
            subset("near the boundary", "boundary", 0.842, 0.815, count // 20),
            *(
                subset(
                    f"digit {digit}", "segment", 0.997 - 0.002 * digit, 0.995 - 0.0028 * digit, count // 10
                )
                for digit in range(10)
            ),
        ),
        agreement=proportion(0.9902, count),
        cosine=Interval(value=0.9961, low=0.9957, high=0.9965, count=count),
        data_sha256=digest("evaluation"),
    )


def _layers() -> tuple[LayerRecord, ...]:
    kept = (16, 9, 16, 11, 16, 8, 16, 20, 32, 17, 32, 15, 32, 30, 64, 21)
    layers = []
    before = 1
    for number, left in enumerate(kept):
        width = 16 if number < 7 else 32 if number < 13 else 64
        params, side = width * before * 9, 28 if number < 7 else 14 if number < 13 else 7
        share = left / width
        layers.append(
            LayerRecord(
                name=f"/layer{number // 4}/block{number % 4 // 2}/conv{number % 2 + 1}/Conv",
                op_type="Conv",
                width=width,
                width_left=left,
                params=params,
                params_left=round(params * share),
                macs=params * side**2,
                macs_left=round(params * share) * side**2,
                sparsity=0.03 if number % 3 else 0.0,
                bits=8,
                reason=None if left < width else "a residual sum needs its channels as they are",
            )
        )
        before = width
    layers.append(
        LayerRecord(
            name="/fc/Gemm",
            op_type="Gemm",
            width=10,
            width_left=10,
            params=640,
            params_left=640,
            macs=640,
            macs_left=640,
            sparsity=0.0,
            bits=32,
            reason="its outputs are the graph output logits",
        )
    )
    return tuple(layers)


def _curves(names: Sequence[str]) -> tuple[CurveRecord, ...]:
    amounts = (0.1, 0.25, 0.5, 0.75, 0.9)
    return tuple(
        CurveRecord(
            name=name,
            amount=amounts,
            loss=tuple(round(0.9 * amount**3 / (1 + number % 17) + 0.002 * amount, 6) for amount in amounts),
            metric="cross entropy",
        )
        for number, name in enumerate(names)
    )


def _points() -> tuple[PointRecord, ...]:
    return (
        PointRecord(name="target_macs 0.8", cost=0.51, accuracy=0.9868),
        PointRecord(name="target_macs 0.65", cost=0.44, accuracy=0.9851),
        PointRecord(name="target_macs 0.5", cost=0.371, accuracy=0.9834, chosen=True),
        PointRecord(name="target_macs 0.35", cost=0.312, accuracy=0.9702),
        PointRecord(name="target_macs 0.3, uniform", cost=0.33, accuracy=0.9611),
    )


def passing_record() -> Record:
    """A run that passed all its gates."""
    stages = _stages()
    layers = _layers()
    return Record(
        version="0.1.0",
        started="2026-03-14T09:12:03Z",
        finished="2026-03-14T09:13:41Z",
        title="digits_residual.onnx",
        verdict="pass",
        accepted=True,
        output="small.onnx",
        recipe=RecipeRecord(
            path="recipe.toml", text=RECIPE, sha256=digest(RECIPE), overrides=("gates.accuracy_drop=0.01",)
        ),
        environment=Environment(
            hardware={"processor": "Intel Xeon Platinum 8481C", "cores": 4, "memory_bytes": 16_777_216_000},
            system="Linux 6.1.0 x86_64, Python 3.11.9",
            packages={"onnxprune": "0.1.0", "onnxruntime": "1.31.1", "onnx": "1.22.0", "numpy": "2.4.1"},
        ),
        files=(
            FileRecord(
                role="model", path="digits_residual.onnx", sha256=digest("original"), size_bytes=1_098_231
            ),
            FileRecord(
                role="calibration data",
                path="digits/calibration.npz",
                sha256=digest("c"),
                size_bytes=3_211_520,
            ),
            FileRecord(
                role="evaluation data",
                path="digits/evaluation.npz",
                sha256=digest("e"),
                size_bytes=31_520_044,
            ),
            FileRecord(role="output", path="small.onnx", sha256=digest("quantize"), size_bytes=139_778),
        ),
        models=_models(),
        stages=stages,
        gates=_gates(),
        checks=(
            CheckRecord(name="runs in ONNX Runtime", passed=True, detail="one sample, outputs finite"),
            CheckRecord(name="same interface", passed=True, detail="inputs and outputs as in the original"),
        ),
        accuracy=_accuracy(),
        latency=LatencyRecord(
            control_ratio=Interval(value=1.0004, low=0.9981, high=1.0027, count=200),
            verdict="faster",
            setting={"provider": "cpu", "threads": 1, "batch": 1, "rounds": 200},
        ),
        memory=(
            MemoryRecord(name="original", load_peak_mib=48.2, steady_mib=41.0, run_peak_mib=44.7),
            MemoryRecord(name="quantize", load_peak_mib=42.9, steady_mib=38.1, run_peak_mib=40.2),
        ),
        layers=layers,
        skipped=tuple(skip for stage in stages for skip in stage.skipped),
        sensitivity=_curves([layer.name for layer in layers]),
        pareto=_points(),
        commands=(
            "pip install onnxprune==0.1.0",
            "onnxprune compress recipe.toml --set gates.accuracy_drop=0.01",
        ),
    )


def _with_gate(record: Record, gate: GateRecord) -> tuple[GateRecord, ...]:
    return tuple(gate if known.name == gate.name else known for known in record.gates)


def failing_record() -> Record:
    """A run that failed a gate, and a check, and is worse than the last accepted one."""
    record = passing_record()
    gate = GateRecord(
        name="accuracy_drop",
        requirement="at most 0.001 below the original",
        limit=0.001,
        measured=Interval(value=0.0037, low=0.0015, high=0.0059, count=10_000),
        verdict="fail",
        detail="top1 fell by 0.0037 (0.0015 to 0.0059) on 10,000 samples, more than 0.001",
    )
    baseline = BaselineRecord(
        path="accepted/report.json",
        finished="2026-02-20T17:02:11Z",
        rows=(
            {"figure": "top1", "before": 0.9861, "now": 0.9834, "change": -0.0027},
            {"figure": "size_bytes", "before": 141_002, "now": 139_778, "change": -1224},
            {"figure": "latency_ratio", "before": 0.389, "now": 0.371, "change": -0.018},
        ),
    )
    checks = (
        *record.checks,
        CheckRecord(name="zeros kept", passed=False, detail="12 of 3,752 zeros are lost in /fc/Gemm"),
    )
    return record.model_copy(
        update={
            "verdict": "fail",
            "accepted": False,
            "output": "small.rejected.onnx",
            "gates": _with_gate(record, gate),
            "checks": checks,
            "baseline": baseline,
        }
    )


def unclear_record() -> Record:
    """A run on so few samples that one of its gates can't be decided."""
    record = passing_record()
    gate = GateRecord(
        name="accuracy_drop",
        requirement="at most 0.01 below the original",
        limit=0.01,
        measured=Interval(value=0.005, low=-0.01, high=0.02, count=200),
        verdict="inconclusive",
        detail="top1 fell by 0.005 (-0.010 to 0.020) on 200 samples; about 3,400 samples would decide",
    )
    return record.model_copy(
        update={
            "verdict": "inconclusive",
            "accepted": False,
            "output": "small.undecided.onnx",
            "gates": _with_gate(record, gate),
            "models": _models(200, 0.982),
            "accuracy": _accuracy(200, 0.982),
        }
    )


def hostile_record() -> Record:
    """A run whose every name and text was chosen by somebody who wants more than to be read."""
    record = passing_record()
    bad = HOSTILE_NAMES
    at = len(bad)
    layers = tuple(
        layer.model_copy(
            update={
                "name": bad[i % at],
                "op_type": bad[(i + 1) % at],
                "reason": layer.reason and bad[(i + 2) % at],
            }
        )
        for i, layer in enumerate(record.layers)
    )
    skipped = tuple(Skip(name=name, reason=f"because of {bad[(i + 3) % at]}") for i, name in enumerate(bad))
    stages = tuple(
        stage.model_copy(
            update={
                "name": bad[i],
                "kind": bad[i + 1],
                "summary": bad[i + 2],
                "options": {bad[i + 3]: bad[i + 4]},
                "sections": {bad[i]: {bad[1]: bad[2]}, bad[i + 1]: [{bad[3]: bad[4], bad[5]: [bad[6]]}]},
                "checks": tuple(CheckRecord(name=name, passed=False, detail=name) for name in bad),
                "skipped": skipped,
            }
        )
        for i, stage in enumerate(record.stages)
    )
    models = tuple(
        model.model_copy(update={"name": model.name if i == 0 else bad[i - 1]})
        for i, model in enumerate(record.models)
    )
    gates = tuple(
        gate.model_copy(
            update={
                "name": bad[i],
                "requirement": bad[i + 1],
                "detail": bad[i + 2],
                "limit": [bad[i]],
                "measured": bad[i + 3],
                "verdict": "fail",
                "accepted": False,
            }
        )
        for i, gate in enumerate(record.gates)
    )
    accuracy = record.accuracy
    assert accuracy is not None
    subsets = tuple(
        subset.model_copy(update={"name": bad[i % at]}) for i, subset in enumerate(accuracy.subsets)
    )
    return record.model_copy(
        update={
            "title": bad[0],
            "verdict": "fail",
            "accepted": False,
            "output": bad[1],
            "version": bad[7],
            "recipe": RecipeRecord(
                path=bad[3], text="\n".join(f'name = "{name}"' for name in bad), sha256=bad[0], overrides=bad
            ),
            "environment": Environment(hardware={bad[0]: bad[1]}, system=bad[3], packages={bad[4]: bad[7]}),
            "files": tuple(FileRecord(role=n, path=n, sha256=n, size_bytes=1) for n in bad),
            "layers": layers,
            "stages": stages,
            "models": models,
            "gates": gates,
            "checks": stages[0].checks,
            "accuracy": accuracy.model_copy(update={"subsets": subsets, "metric": bad[0], "output": bad[7]}),
            "memory": (
                MemoryRecord(
                    name=bad[0], load_peak_mib=None, steady_mib=None, run_peak_mib=None, reason=bad[7]
                ),
            ),
            "skipped": skipped,
            "sensitivity": _curves(bad),
            "pareto": tuple(PointRecord(name=n, cost=0.1 * i, accuracy=0.9) for i, n in enumerate(bad, 1)),
            "baseline": BaselineRecord(path=bad[0], finished=bad[1], rows=({bad[2]: bad[3], bad[4]: 1.0},)),
            "commands": bad,
        }
    )


def bare_record() -> Record:
    """A run of which nothing is recorded but that it took place."""
    return Record(
        version="0.1.0",
        started="2026-03-14T09:12:03Z",
        finished="2026-03-14T09:12:09Z",
        title="model.onnx",
        verdict="pass",
        accepted=True,
        output="small.onnx",
        recipe=RecipeRecord(path="recipe.toml", text='[model]\npath = "model.onnx"\n', sha256=digest("r")),
        environment=Environment(hardware={}, system="Linux", packages={}),
    )


def large_record(layers: int = 300) -> Record:
    """A run on a deep network with long names, many segments and curves, and all times kept."""
    record = passing_record()
    random = np.random.default_rng(0)
    many = []
    for number in range(layers):
        width = 64 * 2 ** min(5, number * 6 // layers)
        left = width if number % 7 == 0 else max(8, int(width * random.uniform(0.2, 1)) // 8 * 8)
        left = 0 if number % 61 == 60 else left
        params = width * width * (9 if number % 3 == 1 else 1)
        many.append(
            LayerRecord(
                name=f"/model/stages.{number // 30}/blocks.{number // 3 % 10}/conv{number % 3 + 1}/Conv",
                op_type="Conv",
                width=width,
                width_left=left,
                params=params,
                params_left=round(params * left / width),
                macs=params * 196,
                macs_left=round(params * left / width) * 196,
                sparsity=float(round(random.uniform(0, 0.1), 4)),
                bits=8 if number % 11 else 32,
                reason=None
                if left < width
                else f"its channels meet those of /model/add_{number}, which stay",
            )
        )
    names = [layer.name for layer in many]
    skipped = tuple(Skip(name=name, reason=f"coupled with {name}/Add, which is frozen") for name in names)
    accuracy = _accuracy()
    segments = tuple(
        accuracy.subsets[2].model_copy(update={"name": f"region {number // 10}, camera {number % 10}"})
        for number in range(60)
    )
    rows = [{"layer": name, "bits": 8, "error": 0.0123, "why": None} for name in names]
    stages = tuple(
        stage.model_copy(update={"sections": {**stage.sections, "by layer": rows}, "skipped": skipped})
        for stage in record.stages
    )
    models = tuple(
        model.model_copy(update={"latency_samples_ms": times(model.latency_ms or 1.0, number, 1000)})
        for number, model in enumerate(record.models)
    )
    return record.model_copy(
        update={
            "title": "backbone_300.onnx",
            "layers": tuple(many),
            "skipped": skipped,
            "stages": stages,
            "models": models,
            "accuracy": accuracy.model_copy(update={"subsets": (*accuracy.subsets, *segments)}),
            "sensitivity": _curves(names),
        }
    )
