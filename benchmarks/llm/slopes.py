"""What each stage of pruning a decoder costs: formulas, slopes that are measured here, and predictions.

    python benchmarks/llm/slopes.py                     # measures, and predicts 1 B, 8 B and 70 B parameters
    python benchmarks/llm/slopes.py --measured 71 1230  # beside seconds of CPU that two runs on 1 B took

Every stage is run at several sizes, and its slope is the least-squares line through zero: seconds for each
operation that the formula counts; of whole passes over a model, there are some seconds besides. Seconds are
of CPU, of one thread, so that other work on the machine hardly counts; a run takes that or longer. The table
in docs/large-models.md is printed by this.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from decoder import Shape, write_decoder, write_samples
from scipy.linalg.blas import ssyrk

import onnxprune
from onnxprune.calibration.activations import each_batch
from onnxprune.cholesky import inverse_factor
from onnxprune.ops.linear import find_linear
from onnxprune.patterns import parse_pattern
from onnxprune.scores.obs import prune_matrix
from onnxprune.scores.refinement import affordable_steps, refine

#: Widths that matrices are measured at; 2048 is that of Llama-3.2-1B.
WIDTHS = (1024, 2048, 3072)

#: Decoders that whole passes are measured on, as layers and widths.
MODELS = ((1, 512), (2, 768), (2, 1280))

BILLION = Shape()
EIGHT = Shape(
    layers=32, width=4096, heads=32, key_heads=8, places=128, hidden=14336, vocabulary=128256, tied=False
)
SEVENTY = Shape(
    layers=80, width=8192, heads=64, key_heads=8, places=128, hidden=28672, vocabulary=128256, tied=False
)


@dataclass(frozen=True)
class Stage:
    """A stage of the work.

    Attributes:
        name: in the table.
        formula: what is counted, for people.
        unit: of what is counted.
        count: of a decoder and the tokens that it is calibrated on.
        points: counts and seconds of CPU, measured.
    """

    name: str
    formula: str
    unit: str
    count: Callable[[Shape, int], float]
    points: Sequence[tuple[float, float]]

    @property
    def line(self) -> tuple[float, float]:
        """Seconds for one of what is counted, and those that are there in any case, of whole runs alone."""
        counts, seconds = (np.array(each) for each in zip(*self.points, strict=True))
        if self.unit == "byte":
            slope, start = np.polyfit(counts, seconds, 1)
            return float(slope), float(start)
        return float(counts @ seconds / (counts @ counts)), 0.0

    def seconds(self, shape: Shape, tokens: int) -> float:
        """Return seconds of CPU for a decoder."""
        slope, start = self.line
        return start + slope * self.count(shape, tokens)

    @property
    def spread(self) -> float:
        """The largest relative distance of a point from the line."""
        slope, start = self.line
        return max(abs(seconds / (start + slope * count) - 1) for count, seconds in self.points)


# --- what a decoder has -------------------------------------------------------------------------------------


def matrices(shape: Shape) -> list[tuple[int, int, bool]]:
    """Return inputs and outputs of the matrices of one layer, and whether their inputs are summed anew."""
    queries, keys = shape.heads * shape.places, shape.key_heads * shape.places
    w, h = shape.width, shape.hidden
    return [
        (w, queries, True), (w, keys, False), (w, keys, False), (queries, w, True),
        (w, h, True), (w, h, False), (h, w, True),
    ]  # fmt: skip


def layer_weights(shape: Shape) -> int:
    """Return the weights of the matrices of one layer."""
    return sum(inputs * outputs for inputs, outputs, _ in matrices(shape))


def steps_of(outputs: int, inputs: int) -> int:
    """Return the products of a refinement of one matrix: of each step, and one before and one after them."""
    steps = affordable_steps(outputs, inputs)
    return steps + 2 if steps else 0


COUNTS: Mapping[str, tuple[str, str, Callable[[Shape, int], float]]] = {
    "pass by magnitude": ("bytes of the model", "byte", lambda s, _: 4.0 * s.parameters()),
    "forward": (
        "2 tokens weights", "flop",
        lambda s, n: 2.0 * n * s.layers * layer_weights(s),
    ),
    "moments": (
        "tokens sum d^2", "flop",
        lambda s, n: float(n) * s.layers * sum(d * d for d, _, anew in matrices(s) if anew),
    ),
    "factor": (
        "2/3 sum d^3", "flop",
        lambda s, _: 2 / 3 * s.layers * sum(float(d) ** 3 for d, _, _ in matrices(s)),
    ),
    "sweep": (
        "sum r d^2", "flop",
        lambda s, _: float(s.layers) * sum(float(r) * d * d for d, r, _ in matrices(s)),
    ),
    "refinement": (
        "2 (steps + 2) sum r d^2", "flop",
        lambda s, _: 2.0 * s.layers * sum(steps_of(r, d) * float(r) * d * d for d, r, _ in matrices(s)),
    ),
}  # fmt: skip


def peak_bytes(shape: Shape) -> dict[str, float]:
    """Return the largest things that are in memory at once in a run of OBS, by name."""
    widest = max(d for d, _, _ in matrices(shape))
    rows = next(r for d, r, _ in matrices(shape) if d == widest)
    return {
        "sums of one input: 12 d^2": 12.0 * widest**2,
        "OBS of one matrix: 20 d^2 + 16 r d": 20.0 * widest**2 + 16.0 * rows * widest,
        "embedding: 4 vocabulary width": 4.0 * shape.vocabulary * shape.width,
    }


# --- measuring ----------------------------------------------------------------------------------------------


def cpu_seconds(work: Callable[[], object], rounds: int = 2) -> float:
    """Return the least seconds of CPU that a call took."""
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return min(taken)


def measure_matrices(widths: Sequence[int]) -> dict[str, list[tuple[float, float]]]:
    """Return points of the stages that work on matrices."""
    random = np.random.default_rng(0)
    points: dict[str, list[tuple[float, float]]] = {}
    pattern = parse_pattern("2:4")
    for d in widths:
        rows = random.standard_normal((2048, d), dtype=np.float32)
        rows[:, 1:] += rows[:, :-1] / 2
        out = np.zeros((d, d), np.float32)
        seconds = cpu_seconds(lambda r=rows, o=out: ssyrk(1.0, r.T, beta=1.0, c=o.T, overwrite_c=1))
        points.setdefault("moments", []).append((2048.0 * d * d, seconds))
        second = (rows.T @ rows).astype(np.float64)
        factor_seconds = cpu_seconds(lambda s=second: inverse_factor(s, 2048))
        points.setdefault("factor", []).append((2 / 3 * float(d) ** 3, factor_seconds))
        weights = random.standard_normal((2 * d, d), dtype=np.float32)
        seconds = cpu_seconds(lambda w=weights, s=second: prune_matrix(w, s, 2048, pattern, 0.5, steps=0), 2)
        points.setdefault("sweep", []).append((2.0 * d * d * d, max(seconds - factor_seconds, 1e-6)))
        kept = prune_matrix(weights, second, 2048, pattern, 0.5, steps=0)
        hessian = (second / 1024 + 0.01 * np.eye(d)).astype(np.float32)
        given = (weights, kept.weights, kept.kept, hessian, 2)
        seconds = cpu_seconds(lambda g=given: refine(*g), 2)
        points.setdefault("refinement", []).append((2.0 * 4 * 2 * d * d * d, seconds))
    return points


def measure_models(models: Sequence[tuple[int, int]], tokens: int) -> dict[str, list[tuple[float, float]]]:
    """Return points of the stages that work on whole models."""
    points: dict[str, list[tuple[float, float]]] = {}
    for layers, width in models:
        shape = Shape(
            layers=layers, width=width, heads=width // 64, key_heads=max(1, width // 256), places=64,
            hidden=4 * width, vocabulary=4096,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path = write_decoder(folder, shape)
            data = onnxprune.load_data(write_samples(folder / "calib.npz", shape, 8, tokens // 8))

            def prune(path: Path = path) -> None:
                result = onnxprune.prune(onnxprune.load(path), pattern="2:4")
                onnxprune.save_pruned(result, path.with_name("out.onnx"), against=path)
                for left in path.parent.glob("out.onnx*"):
                    left.unlink()

            points.setdefault("pass by magnitude", []).append(
                (4.0 * shape.parameters(), cpu_seconds(prune, 2))
            )
            model = onnxprune.load(path)
            last = str(find_linear(model)[0][7 * layers - 1].x.name)
            opened = cpu_seconds(lambda m=model, d=data, x=last: _run(m, d, x, 1), 2)
            whole = cpu_seconds(lambda m=model, d=data, x=last: _run(m, d, x, 8), 2)
            work = 2.0 * tokens * 7 / 8 * (layers * layer_weights(shape) - shape.hidden * width)
            points.setdefault("forward", []).append((work, max(whole - opened, 1e-6)))
    return points


def _run(model: object, data: object, name: str, count: int) -> None:
    from onnxprune.data import Dataset

    some = Dataset.from_arrays({key: array[:count] for key, array in data.arrays.items()})  # type: ignore[attr-defined]
    for _ in each_batch(model, [[name]], some, batch=1):  # type: ignore[arg-type]
        pass


def measure(widths: Sequence[int], models: Sequence[tuple[int, int]], tokens: int) -> list[Stage]:
    """Return all stages with what was measured."""
    points = {**measure_models(models, tokens), **measure_matrices(widths)}
    return [Stage(name, *about, points[name]) for name, about in COUNTS.items()]


# --- telling ------------------------------------------------------------------------------------------------


def predicted(stages: Sequence[Stage], shape: Shape, tokens: int, *, on_data: bool) -> float:
    """Return seconds of CPU for one thread, of 2:4 by magnitude, or by OBS on data."""
    return sum(stage.seconds(shape, tokens) for stage in stages if on_data or stage.unit == "byte")


def table(stages: Sequence[Stage], tokens: int) -> str:
    """Return what was measured, and seconds of CPU for decoders of three sizes."""
    shapes = {"1 B": BILLION, "8 B": EIGHT, "70 B": SEVENTY}
    lines = [
        f"| stage | counted | slope | spread | {' | '.join(shapes)} |",
        f"| --- | --- | --- | --- | {' | '.join('---' for _ in shapes)} |",
    ]
    for stage in stages:
        rate = f"{1 / stage.line[0] / 1e9:.2g} G{stage.unit}/s"
        cells = [_time(stage.seconds(shape, tokens)) for shape in shapes.values()]
        lines.append(
            f"| {stage.name} | {stage.formula} | {rate} | {stage.spread:.0%} | {' | '.join(cells)} |"
        )
    whole = [_time(predicted(stages, shape, tokens, on_data=True)) for shape in shapes.values()]
    lines.append(f"| 2:4 by obs | all of the above | | | {' | '.join(whole)} |")
    for name in peak_bytes(BILLION):
        cells = [f"{peak_bytes(shape)[name] / 2**30:.1f} GiB" for shape in shapes.values()]
        lines.append(f"| memory | {name} | | | {' | '.join(cells)} |")
    sizes = [f"{4 * shape.parameters() / 2**30:.1f} GiB" for shape in shapes.values()]
    lines.append(f"| disk | the model in float32 | | | {' | '.join(sizes)} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="that the prediction calibrates on")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument(
        "--measured", type=float, nargs=2, metavar=("MAGNITUDE", "OBS"), help="seconds of CPU on 1 B"
    )
    options = parser.parse_args()
    stages = measure(options.widths, MODELS, 512)
    print(table(stages, options.tokens))
    if options.measured:
        for what, seconds, on_data in zip(
            ("by magnitude", "by obs"), options.measured, (False, True), strict=True
        ):
            expected = predicted(stages, BILLION, options.tokens, on_data=on_data)
            print(
                f"2:4 {what} on 1 B: predicted {expected:.0f} s of CPU, measured {seconds:.0f} s, "
                f"ratio {seconds / expected:.2f}"
            )


if __name__ == "__main__":
    main()
