"""Points of the table timed by the workers of a cluster: one at a time on each host, of this processor.

What is timed there goes into the same table: times of machines that are alike. Each worker analyses the model
once, at the sizes that are timed, and cuts parts out of it as `PartTimer` does here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxprune.analyze import analyze
from onnxprune.errors import RuntimeFailure
from onnxprune.measure.inputs import random_inputs
from onnxprune.measure.part_times import PartTime
from onnxprune.parts import Part, split_into_parts
from onnxprune.planning.latency.wish import LatencyWish
from onnxprune.planning.part_timer import PartTimer
from onnxprune.workers import Job, hire
from onnxprune.workers.models import ModelName, model_as_files

#: Number of a part, and kept channels by group name.
Point = tuple[int, Mapping[str, int]]


class Elsewhere:
    """Those who time parts for us.

    Args:
        model: as it was given.
        options: with which it was analysed.
        wish: where and how it is timed, and who does it.
        seed: of random contents.
        timer: what knows the times, and gets more.
        parts: of the model, in the order of their numbers.
    """

    def __init__(
        self, model: ir.Model, options: Mapping[str, Any], wish: LatencyWish, seed: int, timer: PartTimer,
        parts: Sequence[Part],
    ) -> None:  # fmt: skip
        self._model, self._options, self._wish, self._seed = model, options, wish, seed
        self._timer, self._parts = timer, parts

    def time(self, points: Sequence[Point], has_time: Callable[[], bool]) -> None:
        """Time points that are not known yet; without a cluster none.

        A point that nobody could time is left to be asked for, and to fail, here.

        Raises:
            WorkersError: the cluster can't be used.
        """
        if self._wish.workers.scheduler is None:
            return
        wanted: dict[str, Point] = {}
        for number, kept in points:
            part = self._parts[number]
            if part.whole is None and not self._timer.knows(part, kept):
                wanted.setdefault(self._timer.signature(part, kept), (number, dict(kept)))
        tasks = list(wanted.values())
        if not tasks:
            return
        with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
            files, name = model_as_files(self._model, None, Path(folder) / "model")
            told = (files, name, dict(self._options), self._wish.batch, self._wish.execution, self._seed)
            with hire(self._wish.workers, Job(timer_there, told, alone=True), len(tasks)) as crew:
                for place, found in crew.run(tasks):
                    if isinstance(found, PartTime):
                        number, kept = tasks[place]
                        self._timer.put(self._parts[number], kept, found)
                    if not has_time():
                        break


def timer_there(
    files: Path, name: ModelName, options: Mapping[str, Any], batch: int | None, execution: Any, seed: int
) -> Callable[[Point], PartTime | None]:
    """Return, on a worker, what times points; None for one that can't be timed."""
    model = name.load(files)
    shapes = options.get("input_shapes")
    feeds = random_inputs(
        model, batch=batch, seed=seed,
        input_shapes=None if shapes is None else {key: tuple(shape) for key, shape in shapes.items()},
    )  # fmt: skip
    sizes = {key: tuple(array.shape) for key, array in feeds.items()}
    analysis = analyze(model, **{**options, "input_shapes": sizes})
    parts = split_into_parts(analysis.model.graph, analysis.channels)
    timer = PartTimer(analysis, parts, execution, None, feeds=feeds, seed=seed)

    def time_point(point: Point) -> PartTime | None:
        number, kept = point
        try:
            return timer.time_alone(parts[number], kept)
        except RuntimeFailure:
            return None

    return time_point
