"""Times of the kernels that run for a model, from ONNX Runtime's own profiler.

ONNX Runtime rewrites a graph before it runs it: nodes are fused, folded, renamed, laid out anew. The session
that is profiled writes the graph that it runs, too, so that each kernel can be traced back to the nodes of
the model that it stands for (`onnxprune.runtime.covering`).
"""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.errors import RuntimeFailure, UsageError
from onnxprune.messages import one_line
from onnxprune.model.io import load
from onnxprune.model.nodes import graphs_in, nodes_in
from onnxprune.model.stored import all_nodes, consumer_name
from onnxprune.runtime.covering import MARK, MARKED, cover, marks
from onnxprune.runtime.execution import DEFAULT, Execution, pinned
from onnxprune.runtime.library import label_of
from onnxprune.runtime.opening import session_options, start
from onnxprune.runtime.optimized import write_beside

#: ONNX Runtime keeps this many events of a profile, and drops what follows.
MOST_EVENTS = 1_000_000

#: Events of a run that are no kernels, at most.
_OTHER_EVENTS = 8

_KERNEL = "_kernel_time"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of the main graph, as often as it ran.

    Attributes:
        name: ONNX Runtime's name of it; not unique.
        op_type: what it computes; other than in the model where nodes were fused or converted.
        covers: names of the nodes of the given model that it computes, in the model's order; a node without a
            name is called by its first output. Nothing for what ONNX Runtime inserted (``ReorderInput``,
            ``Transpose``, ``MemcpyToHost`` ...). A node that ONNX Runtime splits up is covered by several.
        microseconds: float64 [run], whole microseconds; time in the bodies of a control-flow node is its own.
        provider: ONNX Runtime's name of the provider that ran it.
    """

    name: str
    op_type: str
    covers: tuple[str, ...]
    microseconds: npt.NDArray[np.float64]
    provider: str = ""


class _Event(NamedTuple):
    name: str
    op_type: str
    provider: str
    start: int
    microseconds: int


def time_kernels(
    model: ir.Model | str | Path,
    feeds: Mapping[str, npt.NDArray[Any]],
    execution: Execution = DEFAULT,
    *,
    runs: int = 20,
    warm_up: int = 2,
    label: str | None = None,
) -> tuple[Kernel, ...]:
    """Run a model under ONNX Runtime's profiler; return its kernels in the order in which they run.

    Everything is written into a temporary folder, which is removed. Kernels that take part of a microsecond
    count as none. The profiler's own work lies between the kernels and does not count, but for bodies: there
    it is time of the loop, which may seem ten times slower than it is. On a GPU, times are those of the call,
    which only queues the kernel.

    Args:
        model: a path, or a model, which is not changed.
        feeds: one array per input.
        execution: where and how it runs.
        runs: how many are recorded. Fewer are where a loop fills the profile, which holds `MOST_EVENTS`.
        warm_up: runs before these.
        label: what messages call the model; its path by default.

    Raises:
        UsageError: ``runs`` or ``warm_up`` is out of range, or the execution can't be had.
        ModelError: the path is no model file.
        RuntimeFailure: the model can't be opened, run or profiled.
    """
    if runs < 1 or warm_up < 0:
        raise UsageError(f"profiling takes one run or more, and a warm-up of 0 or more: {runs}, {warm_up}")
    label = one_line(label) if label else label_of(model)
    if not isinstance(model, ir.Model):
        model = load(model)
    marked = model.clone()
    names = []
    for index, node in enumerate(marked.graph):
        names.append(consumer_name(node))
        node.name = f"{MARK}{index}"
    try:
        room = _room(marked, feeds, execution, label)
        warm_up = min(warm_up, room - 1)
        recorded = _record(marked, feeds, execution, min(warm_up + runs, room), label)
    except RuntimeFailure as error:
        raise RuntimeFailure(_named(str(error), names)) from None
    return _collect(recorded, names, warm_up, label)


def _room(model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]], execution: Execution, label: str) -> int:
    """Return how many runs a profile holds."""
    if any(graphs_in(node) for node in model.graph):  # how often bodies run shows only when they do
        runs = _record(model, feeds, execution, 1, label).runs
        if not runs:
            raise RuntimeFailure(f"{label}: one run fills the profile, which holds {MOST_EVENTS:,} events")
        events = len(runs[0])
    else:
        events = 2 * sum(1 for _ in all_nodes(model))  # some are split up
    return max(1, MOST_EVENTS // (events + _OTHER_EVENTS))


class _Recorded(NamedTuple):
    """What a profile tells.

    Attributes:
        runs: kernels of each complete run, those of bodies too, in the order in which they ended.
        ran: the graph that ran, where ONNX Runtime could write it.
        covers: numbers of the model's nodes that each node of ``ran`` stands for.
    """

    runs: list[list[_Event]]
    ran: ir.Graph | None
    covers: list[tuple[int, ...]]


def _record(
    model: ir.Model, feeds: Mapping[str, npt.NDArray[Any]], execution: Execution, runs: int, label: str
) -> _Recorded:
    with tempfile.TemporaryDirectory(prefix="onnxprune-profile-") as folder:
        options = session_options(execution, "all", prepack=True)
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        graph_file = Path(folder, "ran.onnx")
        write_beside(options, graph_file, split=True)
        try:
            session = start(model, execution, options, optimize="all", label=label)
        except RuntimeFailure:
            # a provider that compiles parts of the graph can't write what it made of it
            graph_file.unlink(missing_ok=True)
            options = session_options(execution, "all", prepack=True)
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = start(model, execution, options, optimize="all", label=label)
        with pinned(execution):
            for _ in range(runs):
                session.run(feeds)
        profile = Path(session.end_profiling())
        ran = ir.load(graph_file).graph if graph_file.is_file() else None
        return _Recorded(list(_runs(profile)), ran, [] if ran is None else cover(model.graph, list(ran)))


def _runs(profile: Path) -> Iterator[list[_Event]]:
    """Yield the kernels of each run; a run that the profile has no end of is left out."""
    kernels: list[_Event] = []
    with profile.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:  # an event each; all of them at once would take gigabytes
            text = line.strip().rstrip(",")
            if len(text) < 3:
                continue
            try:
                event = json.loads(text, strict=False)
            except ValueError:
                return  # it was cut off
            name = event["name"]
            if event["cat"] == "Node" and name.endswith(_KERNEL):
                args = event["args"]
                kernels.append(
                    _Event(
                        name.removesuffix(_KERNEL),
                        args["op_name"],
                        args["provider"],
                        event["ts"],
                        event["dur"],
                    )
                )
            elif name == "model_run":
                yield kernels
                kernels = []


def _collect(recorded: _Recorded, nodes: Sequence[str], warm_up: int, label: str) -> tuple[Kernel, ...]:
    """Put the runs side by side; ``nodes`` are the names of the model's nodes by their number."""
    ran = recorded.ran
    bodies = (
        {inner.name for node in ran for body in graphs_in(node) for inner in nodes_in(body)} if ran else set()
    )
    tops = [_outermost(events, bodies) for events in recorded.runs]
    if not tops:
        raise RuntimeFailure(f"{label}: ONNX Runtime's profile holds no complete run")
    first = tops[-1]
    same = [top for top in tops[warm_up:] or tops[-1:] if [e.name for e in top] == [e.name for e in first]]
    times = np.array([[event.microseconds for event in top] for top in same], dtype=np.float64)
    covers = _covers_of(first, recorded)
    return tuple(
        Kernel(
            name=_named(event.name, nodes),
            op_type=event.op_type,
            covers=tuple(nodes[number] for number in covered),
            microseconds=times[:, position],
            provider=event.provider,
        )
        for position, (event, covered) in enumerate(zip(first, covers, strict=True))
    )


def _outermost(events: Sequence[_Event], bodies: Collection[str | None]) -> list[_Event]:
    """Return the kernels of the main graph; those of a body end within the kernel that runs it."""
    outermost: list[_Event] = []
    for event in reversed(events):
        if outermost:
            begin = outermost[-1].start
            instant = event.start == begin and event.microseconds == 0 and event.name not in bodies
            if event.start >= begin and not instant:
                continue
        outermost.append(event)
    return outermost[::-1]


def _covers_of(events: Sequence[_Event], recorded: _Recorded) -> list[tuple[int, ...]]:
    if recorded.ran is None:
        return [marks(event.name) for event in events]
    by_name: dict[str, list[int]] = defaultdict(list)
    ran = list(recorded.ran)
    if [event.op_type for event in events] == [node.op_type for node in ran]:
        return recorded.covers
    for index, node in enumerate(ran):
        by_name[str(node.name)].append(index)
    waiting = {name: iter(indexes) for name, indexes in by_name.items()}
    found = []
    for event in events:
        place = next(waiting.get(event.name, iter(())), None)
        found.append(marks(event.name) if place is None else recorded.covers[place])
    return found


def _named(name: str, nodes: Sequence[str]) -> str:
    """Return a kernel's name with the names of the model's nodes, in place of the marks."""
    return MARKED.sub(lambda found: nodes[int(found[1])] if int(found[1]) < len(nodes) else found[0], name)
