"""A model that is run stretch by stretch over the same batches; what passes between them waits meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxprune.calibration.part import Tap, part_of
from onnxprune.calibration.stretches import Stretch
from onnxprune.errors import RuntimeFailure
from onnxprune.resident import return_freed_memory
from onnxprune.runtime import Session, open_session
from onnxprune.spill import Spill, Spilled

Array = npt.NDArray[Any]

#: Large weights; they are left out where sizes alone matter.
_HOLLOW_BYTES = 1 << 20

#: How a stretch is opened: as fast as can be; without copies of its weights, where none are computed from
#: others, which would be done again for each batch; as it is written; with zeros in place of large weights,
#: which are not read then, where sizes alone matter.
Form: TypeAlias = Literal["fast", "light", "written", "hollow"]

#: Number of a batch -> inputs of the model by name.
Feeds = Callable[[int], Mapping[str, Array]]


class Turn(NamedTuple):
    """What one run gives.

    Attributes:
        stretch: the number of the stretch.
        share: the number of the share of its taps.
        batch: the number of the batch.
        found: by tap; arrays in memory of ONNX Runtime, to be let go of soon. Why there is nothing, where
            this or an earlier stretch failed on the batch.
    """

    stretch: int
    share: int
    batch: int
    found: Mapping[Tap, Array] | RuntimeFailure


def relay(
    model: ir.Model,
    stretches: Sequence[Stretch],
    shares: Sequence[Sequence[Sequence[Tap]]],
    feeds: Feeds,
    batches: int,
    *,
    spill_bytes: int,
    threads: int,
    form: Form = "fast",
    label: str | None = None,
) -> Iterator[Turn]:
    """Run stretches one after the other, each over all batches.

    Args:
        model: whose graph was cut; its tensors are read when the stretch that needs them is opened.
        stretches: from `cut_into_stretches`.
        shares: of each stretch, the taps of each pass over the batches; the first one also passes values on.
        feeds: the inputs.
        batches: how many.
        spill_bytes: of the values that wait in memory; the others wait on disk.
        threads: of one operator; 0 for one per core.
        form: how stretches are opened.
        label: what errors call the model.

    Yields:
        Once for each batch of each share.

    Raises:
        RuntimeFailure: a stretch can't be opened.
        OutputError: there is no room on disk for what passes.
    """
    with Spill(spill_bytes) as spill:
        waiting: list[dict[str, Spilled]] = [{} for _ in range(batches)]
        failed: dict[int, RuntimeFailure] = {}
        for place, stretch in enumerate(stretches):
            for turn, wanted in enumerate(shares[place] or ((),)):
                passed = stretch.passed if turn == 0 else ()
                taps = dict.fromkeys([*(Tap(name) for name in reversed(passed)), *reversed(wanted)])
                if not taps:
                    continue
                session: Session | None = None
                names = {tap: f"tap_{number}" for number, tap in enumerate(taps)}
                for batch in range(batches):
                    if batch in failed:
                        yield Turn(place, turn, batch, failed[batch])
                        continue
                    given = feeds(batch)
                    if session is None:
                        session = _open(model, names, waiting[batch], threads, form, label)
                    mine = {name: _given(given, waiting[batch], name) for name in session.input_names}
                    try:
                        results = session.run_in_place(mine)
                    except RuntimeFailure as error:
                        failed[batch] = error
                        yield Turn(place, turn, batch, error)
                        continue
                    finally:
                        del mine
                    for name in passed:
                        waiting[batch][name] = spill.put(results[names[Tap(name)]])
                    yield Turn(place, turn, batch, {tap: results[names[tap]] for tap in wanted})
                    del results  # before the next run makes as many
                    return_freed_memory()
                del session
            for values in waiting:
                for name in stretch.last:
                    if name in values:
                        values.pop(name).drop()
        return_freed_memory()


def _open(
    model: ir.Model,
    names: Mapping[Tap, str],
    waiting: Mapping[str, Spilled],
    threads: int,
    form: Form,
    label: str | None,
) -> Session:
    known = {name: np.empty(each.shape, each.dtype) for name, each in waiting.items()}  # for their types
    part = part_of(model, names, known)
    for value in part.graph.initializers.values() if form == "hollow" else ():
        tensor = value.const_value
        if tensor is not None and tensor.dtype.is_floating_point() and tensor.nbytes >= _HOLLOW_BYTES:
            shape = [int(size) for size in tensor.shape.numpy()]
            value.const_value = ir.Tensor(np.zeros(shape, tensor.dtype.numpy()), dtype=tensor.dtype)
    if form == "fast" or (form == "light" and _folds(part)):
        return open_session(part, threads=threads, arena=False, label=label)
    return open_session(part, threads=threads, arena=False, label=label, optimize="none", prepack=False)


def _folds(part: ir.Model) -> bool:
    """Tell whether the runtime would compute large weights once, when it opens a part."""
    return any(
        all(value is None or value.is_initializer() for value in node.inputs)
        and any(value is not None and _bytes_of(value) >= _HOLLOW_BYTES for value in node.inputs)
        for node in part.graph
    )


def _bytes_of(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _given(feeds: Mapping[str, Array], waiting: Mapping[str, Spilled], name: str) -> Array:
    found = waiting.get(name)
    return feeds[name] if found is None else found.array()
