"""How much longer OBS takes for one matrix than the products of matrices that it can't do without.

Those are the Cholesky factor of the Hessian, the inverse of that factor, and for every band of columns the
product that updates all columns behind it. Both sides run in turns in one process, on the same numbers. ONNX
Runtime has no part in this.

python benchmarks/obs_speed.py [--size 4096] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from scipy.linalg import blas

from onnxprune.cholesky import inverse_factor
from onnxprune.patterns import parse_pattern
from onnxprune.scores.obs import BAND, prune_matrix
from onnxprune.scores.refinement import affordable_steps

PATTERNS = {"unstructured": 0.5, "2:4": 0.5, "block:4x4": 0.5}


def products_alone(weights: np.ndarray, second: np.ndarray, count: int) -> None:
    """Run what no implementation of the method can leave out, with nothing decided in between."""
    upper = np.ascontiguousarray(inverse_factor(second, count).upper, dtype=np.float32)
    columns = np.ascontiguousarray(weights.T)
    for start in range(0, len(columns) - BAND, BAND):
        end = start + BAND
        band, behind = columns[start:end].copy(), columns[end:]
        blas.sgemm(-1.0, band.T, upper[start:end, end:], beta=1.0, c=behind.T, overwrite_c=1)


def seconds(work: Callable[[], object]) -> float:
    """Return the wall time of a call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Measure in turns and print one line for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="rows and columns of the matrix")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turns")
    options = parser.parse_args()

    size, random = options.size, np.random.default_rng(0)
    inputs = random.standard_normal((2 * size, size), dtype=np.float32)
    inputs[:, 1:] += inputs[:, :-1] / 2  # neighbours are correlated, as in real data
    second = (inputs.T @ inputs).astype(np.float64)
    weights = random.standard_normal((size, size), dtype=np.float32)
    sweeps = {
        name: lambda name=name, share=share: prune_matrix(
            weights, second, len(inputs), parse_pattern(name), share, steps=0
        )
        for name, share in PATTERNS.items()
    }
    works = {"products alone": lambda: products_alone(weights, second, len(inputs)), **sweeps}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(options.rounds):
        for name, work in works.items():
            taken[name].append(seconds(work))
    base = taken["products alone"]
    print(f"{size} x {size}, medians of {options.rounds} rounds in turns; ratios are paired")
    for name, times in taken.items():
        ratio = statistics.median(mine / theirs for mine, theirs in zip(times, base, strict=True))
        print(f"{name:16} {statistics.median(times):7.2f} s   ratio {ratio:.2f}")
    print(f"steps of refinement after the sweep, by default: {affordable_steps(size, size)}")


if __name__ == "__main__":
    main()
