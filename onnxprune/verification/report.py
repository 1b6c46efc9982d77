"""verify: every check on one saved file, and the table of what it holds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune import runtime
from onnxprune.errors import OnnxPruneError
from onnxprune.messages import one_line
from onnxprune.model.io import EXTERNAL, SPARSE, load, save
from onnxprune.model.nodes import nodes_in
from onnxprune.model.serialize import recall
from onnxprune.model.size import tensor_bytes
from onnxprune.ops.weights import FoundWeight, locate_weights
from onnxprune.patterns import REWRITING_SCORES, Pattern, parse_pattern
from onnxprune.types import Check, Plan, Report, Skipped
from onnxprune.verification.container import (
    check_checker,
    check_interface,
    check_size,
    check_unused,
    file_bytes,
)
from onnxprune.verification.optimized import Survival, check_survival, trace_zeros
from onnxprune.verification.plan import (
    Declared,
    check_branches,
    check_declared_zeros,
    check_form,
    check_pattern,
    check_repaired_graph,
    check_same_graph,
    check_shapes,
    check_untouched,
)
from onnxprune.verification.running import LARGE_BYTES, check_outputs_finite
from onnxprune.verification.zeros import WeightZeros, count_zeros

_LONGEST_REASON = 400  # paths are long
#: From this size on, a file that holds its weights itself is copied for libraries that read it into memory.
_INLINE_BYTES = 1 << 28

#: Checks that other libraries make of a file, whatever it is compared with.
_OF_OTHERS = (_CHECKER, _SURVIVAL, _FINITE) = ("onnx checker", "zeros survive ONNX Runtime", "outputs finite")

#: Of random inputs.
_SEEDS = (0, 1, 2)

#: Below this, ONNX Runtime is given a model in memory; from here on it writes weights to a file of their own.
_IN_MEMORY_BYTES = 1 << 30


def verify(
    path: str | Path,
    *,
    against: str | Path | None = None,
    plan: Plan | None = None,
    optimize: bool = True,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seeds: Sequence[int] = _SEEDS,
    threads: int = 1,
    runtime_limit_bytes: int | None = None,
) -> Report:
    """Check that a saved file is what it claims to be. Nothing that the file gets wrong raises.

    Always: it loads, onnx's checker accepts it, nothing unused is stored, data files hold tensors only, ONNX
    Runtime runs it with finite outputs, and its optimizer keeps the zeros. Against the original: the
    interface is the same, the file no larger. With a plan: zeros and shapes as planned, N:M and blocks along
    the axis that the consumers in this file sum over; with both, every other weight bit for bit as it was.

    Zeros that are added to weights outside a plan's masks show only against the original.

    Args:
        path: the file.
        against: the model it was made from.
        plan: the plan that was applied.
        optimize: also look at what ONNX Runtime's optimizer ("extended") makes of the file.
        input_shapes: by input name, for symbolic axes that the defaults do not fit.
        seeds: one random input each.
        threads: of ONNX Runtime.
        runtime_limit_bytes: leave out what needs ONNX Runtime, and say so, where tensors take more than this:
            it holds them in memory, all other checks read them piece by piece.

    Raises:
        UsageError: the plan's pattern is unknown.
    """
    checking = _Checking(Path(path), None if against is None else Path(against), plan)
    return checking.make_all(
        optimize=optimize,
        input_shapes=input_shapes,
        seeds=seeds,
        threads=threads,
        runtime_limit_bytes=runtime_limit_bytes,
    )


def verify_and_keep(
    path: Path, against: Path, *, input_shapes: Mapping[str, Sequence[int]] | None, known: Sequence[Check]
) -> tuple[Report, list[ir.Model]]:
    """As `verify`, for who has more to do with the models.

    ``known`` are checks of a file of the same bytes: what onnx's checker and ONNX Runtime had no objection to
    is not given to them again.

    Returns:
        The report, and the models that could be read: the file, and what it was made from.
    """
    checking = _Checking(path, against, None)
    checking.made |= {check.name: check for check in known if check.passed and check.name in _OF_OTHERS}
    return checking.make_all(input_shapes=input_shapes), checking.models


@dataclass(slots=True)
class _Checking:
    """The state of one verification: what was read, and what was found so far."""

    path: Path
    against: Path | None
    plan: Plan | None
    models: list[ir.Model] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)  # bytes of the tensors of each
    weights: list[FoundWeight] = field(default_factory=list)
    zeros: list[WeightZeros] = field(default_factory=list)
    survivals: list[Survival | None] = field(default_factory=list)
    declared: Declared | None = None
    made: dict[str, Check | Future[Check]] = field(default_factory=dict)  # before, or meanwhile
    _copy: tuple[Path, ir.Model] | None = None
    checks: list[Check] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def model(self) -> ir.Model:
        return self.models[0]

    @property
    def original(self) -> ir.Model | None:
        return self.models[1] if len(self.models) > 1 else None

    @property
    def given(self) -> tuple[Path, ir.Model]:
        """What other libraries are given."""
        return self._copy or (self.path, self.model)

    def make_all(
        self,
        *,
        input_shapes: Mapping[str, Sequence[int]] | None,
        optimize: bool = True,
        seeds: Sequence[int] = _SEEDS,
        threads: int = 1,
        runtime_limit_bytes: int | None = None,
    ) -> Report:
        """Make every check: arguments as in `verify`."""

        def finite() -> Check:
            return self.finite(input_shapes, seeds, threads)

        if not self.load():
            return self.report()
        with self.read_in_place(), ThreadPoolExecutor(2) as pool:
            limit = LARGE_BYTES if runtime_limit_bytes is None else runtime_limit_bytes
            if self.sizes[0] < min(LARGE_BYTES, limit):
                self.begin(pool, _FINITE, finite)
                self.begin(pool, _CHECKER, self.validate)
            self.look_at_file()
            self.look_at_plan()
            if self.too_large(runtime_limit_bytes):
                return self.report()
            if optimize:
                self.look_at_optimized()
            self.run(_FINITE, finite)
        return self.report()

    def begin(self, pool: ThreadPoolExecutor, name: str, step: Callable[[], Check]) -> None:
        """Let other libraries make a check while ours go on: they leave Python alone for most of it."""
        if name not in self.made:
            self.made[name] = pool.submit(step)

    def run(self, name: str, step: Callable[[], Check | None]) -> bool:
        """Make one check; what the file gets wrong in it is a failed check."""
        start = time.perf_counter()
        made = self.made.get(name)
        try:
            check = made.result() if isinstance(made, Future) else made or step()
        except OnnxPruneError as error:
            check = Check(name, False, one_line(error, _LONGEST_REASON))
        self.seconds[name] = time.perf_counter() - start
        if check is not None:
            self.checks.append(check)
        return check is None or check.passed

    def load(self) -> bool:
        for what, path in (("loads", self.path), ("original loads", self.against)):
            if path is not None and not self.run(what, lambda: self._load(what, path)):  # noqa: B023
                return False
        return True

    def _load(self, what: str, path: Path) -> Check:
        model = load(path)
        self.models.append(model)
        self.sizes.append(tensor_bytes(model))
        nodes = sum(1 for _ in nodes_in(model.graph))
        return Check(what, True, f"{nodes} nodes, {self.sizes[-1]} bytes of tensors")

    @contextmanager
    def read_in_place(self) -> Iterator[None]:
        """Let other libraries have a large file in a form that they read in place: with external data.

        They would parse the file into memory, and copy that.
        """
        inline = not recall(self.model, EXTERNAL) and not recall(self.model, SPARSE)
        if not inline or self.sizes[0] < _INLINE_BYTES:
            yield
            return
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            copy = Path(folder) / "model.onnx"
            save(self.model, copy, external_data=True)
            self._copy = copy, load(copy)
            reason = "onnx and ONNX Runtime, which copy large files in memory, had it with external data"
            self.skipped.append(Skipped("weights in the file itself", reason))
            yield

    def look_at_file(self) -> None:
        original = self.original
        self.run(_CHECKER, self.validate)
        if original is not None:
            self.run("interface", lambda: check_interface(self.model, original))
        self.run("no unused weights", lambda: check_unused(self.model, original))
        self.run("file size", lambda: check_size(self.model, original, self.sizes))
        self.run("weights", self._count)

    def validate(self) -> Check:
        return check_checker(self.given[0], self.against)

    def _count(self) -> None:
        self.weights, skipped = locate_weights(self.model)
        self.skipped.extend(dict.fromkeys(skipped))
        pattern = self._declared()
        if pattern is None or self.plan is None:
            self.zeros = count_zeros(self.weights, None)
            return
        self.declared = Declared(self.plan.masks, pattern)
        self.zeros = count_zeros(self.weights, pattern, self.declared)

    def _declared(self) -> Pattern | None:
        if self.plan is None or not self.plan.masks:
            return None
        return parse_pattern(self.plan.pattern)

    def look_at_plan(self) -> None:
        plan, pattern, original = self.plan, self._declared(), self.original
        if plan is None:
            return
        if any(group.branches for group in plan.groups):
            self.run("planned layers", lambda: check_branches(self.model, plan))
            return
        if pattern is None:
            self.run("planned shapes", lambda: check_shapes(self.model, plan))
            return
        repaired = any(plan.recipe.get(name) is not None for name in ("recover", "tuning"))
        if repaired:
            self._look_at_repair(original)
        else:
            self.run("graph unchanged", lambda: check_same_graph(self.model, original, plan))
        self.run("declared zeros", lambda: check_declared_zeros(self.model, plan.masks, self.declared))
        if pattern.kind != "unstructured":
            name = f"pattern {pattern}"
            self.run(name, lambda: check_pattern(self.weights, plan.masks, pattern, self.declared))
        if original is not None and not repaired:
            name = "other weights unchanged"
            rewritten = plan.recipe.get("score") in REWRITING_SCORES
            self.run(name, lambda: check_untouched(self.model, original, plan.masks, rewritten=rewritten))

    def _look_at_repair(self, original: ir.Model | None) -> None:
        """A repair changes floats and may add biases: only beside the original can the rest be judged."""
        if original is None:
            reason = "a repair may have added biases: give --against to compare with the original"
            self.skipped.append(Skipped("graph unchanged", reason))
            return
        self.run("graph unchanged", lambda: check_repaired_graph(self.model, original))
        self.run("form of the weights", lambda: check_form(self.model, original))

    def too_large(self, limit_bytes: int | None) -> bool:
        size = self.sizes[0]
        if limit_bytes is None or size <= limit_bytes:
            return False
        reason = (
            f"its tensors take {size} bytes, more than the limit of {limit_bytes} for running it; use verify"
        )
        self.skipped.append(Skipped("checks that run the model", reason))
        return True

    def look_at_optimized(self) -> None:
        """Let ONNX Runtime write what it makes of the file, and look for the zeros in that."""
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            self.run(_SURVIVAL, lambda: self._survive(Path(folder) / "optimized.onnx"))

    def _survive(self, scratch: Path) -> Check:
        if not any(weight.zeros for weight in self.zeros):
            return check_survival(self.zeros, [None] * len(self.zeros))
        size = self.sizes[0]
        how = "optimized graph"
        path, model = self.given
        if recall(model, EXTERNAL) and not recall(model, SPARSE) and size >= LARGE_BYTES:
            how = f"{how} (without folded constants, which would fill memory: {size} bytes of tensors)"
            runtime.save_optimized_graph(path, scratch, "extended")
            optimized = load(scratch, data_beside=path)
        else:
            # Given a path, ONNX Runtime leaves external tensors where they are (not beside the copy), and
            # writes sparse ones with int16 indices, which the format does not allow.
            special = recall(self.model, EXTERNAL) or recall(self.model, SPARSE)
            in_memory = special and size < _IN_MEMORY_BYTES
            runtime.save_optimized(self.model if in_memory else self.path, scratch, "extended")
            optimized = load(scratch)
        self.survivals = trace_zeros(self.zeros, optimized)
        return check_survival(self.zeros, self.survivals, how)

    def finite(
        self, input_shapes: Mapping[str, Sequence[int]] | None, seeds: Sequence[int], threads: int
    ) -> Check:
        path, model = self.given
        return check_outputs_finite(model, path, self.against, input_shapes, seeds, threads)

    def report(self) -> Report:
        sections: dict[str, Any] = {}
        if self.models:
            sections["file"] = {
                "path": str(self.path),
                "size_bytes": file_bytes(self.model),
                "tensor_bytes": self.sizes[0],
                "weights": sum(weight.size for weight in self.zeros),
                "zeros": sum(weight.zeros for weight in self.zeros),
            }
            survivals = self.survivals or [None] * len(self.zeros)
            sections["weights"] = [_row(w, s) for w, s in zip(self.zeros, survivals, strict=True)]
        title = f"verify {one_line(self.path.name)}"
        return Report(title, sections, tuple(self.checks), tuple(self.skipped), self.seconds)


def _row(weight: WeightZeros, survival: Survival | None) -> dict[str, Any]:
    use = weight.weight.use
    return {
        "tensor": use.tensor,
        "consumer": use.consumer,
        "operator": use.op_type,
        "shape": list(weight.weight.shape),
        "summed_axis": use.summed_axis,
        "zeros": weight.zeros,
        "sparsity": weight.zeros / max(1, weight.size),
        "pattern": weight.pattern,
        "survives": None if survival is None else survival.left,
    }
