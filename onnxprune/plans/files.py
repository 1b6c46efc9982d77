"""Plans on disk: a folder ``NAME.plan``, of which people and diffs can read all but the masks.

What is decided stands in ``plan.json``, masks in ``masks.safetensors``, the outline of the graph, by which a
plan finds its place in a model with other names, in ``graph.json``.

``plan.json`` lists for every member of every group the tensor, the axis and the removed positions, so that a
third party can audit a cut without onnxprune. A folder is written beside its place and moved there whole.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors
from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError

from onnxprune.errors import OutputError, PlanError
from onnxprune.messages import one_line, quoted, visible
from onnxprune.model.atomic import NewFolder, output_errors
from onnxprune.model.mask_store import MaskStore
from onnxprune.model.together import Together
from onnxprune.outlines import Outline
from onnxprune.plans import graph_file
from onnxprune.plans.lines import in_lines
from onnxprune.reading import contents, opened, parse_json
from onnxprune.types import (
    BranchKind,
    Cost,
    IntArray,
    Kind,
    Mask,
    Plan,
    PlannedBranch,
    PlannedGroup,
    PlannedMember,
    Skipped,
)

SCHEMA = 1
_MASKS = "masks.safetensors"
_LARGEST_JSON_BYTES = 256 << 20

#: That safetensors allows.
_LARGEST_HEADER_BYTES = 100 << 20

#: Numbers of channels and positions: they are kept as int32.
_Position = Annotated[int, Field(ge=0, lt=2**31)]
_Size = Annotated[int, Field(ge=1, lt=2**31)]

#: One mistake is told; a mistake for each of a million entries would fill the memory.
_Positions = Annotated[list[_Position], FailFast()]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Member(_Strict):
    tensor: str
    axis: Annotated[int, Field(ge=0, lt=64)]
    size: _Size
    consumer: str
    contracted: bool
    removed: _Positions


class _Branch(_Strict):
    name: str
    value: str
    weights: list[str]
    score: float


class _Group(_Strict):
    name: str
    kind: Kind | BranchKind
    size: _Size
    removed: _Positions
    skipped: str | None
    members: list[_Member]
    exact: bool = True
    branches: list[_Branch] = []


class _MaskEntry(_Strict):
    shape: list[_Position]
    kept: int = Field(ge=0)


class _Skipped(_Strict):
    name: str
    reason: str


class _Cost(_Strict):
    params: int
    macs: int
    size_bytes: int


_Kind = TypeVar("_Kind", "_File", graph_file.GraphFile)


class _File(_Strict):
    schema_number: int = Field(alias="schema")
    pattern: str
    structure_digest: str
    weights_digest: str
    recipe: dict[str, Any]
    seed: int
    versions: dict[str, str]
    predicted: dict[str, _Cost]
    groups: list[_Group]
    masks: dict[str, _MaskEntry]
    skipped: list[_Skipped]


def save_plan(plan: Plan, folder: str | Path, *, together: Together | None = None) -> Path:
    """Write a plan as a folder, which replaces an older plan of that name and nothing else.

    Args:
        plan: what was decided.
        folder: where it goes; appears whole or not at all.
        together: what it appears with, or not at all.

    Raises:
        OutputError: the place is taken by something that is no plan, or can't be written.
    """
    target = Path(folder)
    with contextlib.ExitStack() as stack:
        together = together or stack.enter_context(Together())
        new = together.begin(NewFolder(target, check_plan_target))
        with output_errors(target):
            text = in_lines(_as_json(plan))
            (new.temporary / "plan.json").write_bytes(text.encode())
            if plan.masks:
                with (new.temporary / _MASKS).open("wb") as stream:
                    _write_masks(plan.masks, stream)
            if plan.graph is not None:
                (new.temporary / "graph.json").write_bytes(graph_file.to_text(plan.graph).encode())
        together.place_later(new)
    return target


def check_plan_target(target: Path) -> None:
    """Refuse a place that is taken by something that is no plan.

    Raises:
        OutputError: likewise.
    """
    if target.exists() and not (target / "plan.json").is_file():
        raise OutputError(
            f"{visible(target)}: exists and is no plan folder; choose another place for the plan"
        )
    if not target.absolute().parent.is_dir():
        raise OutputError(f"{visible(target)}: there is no folder {visible(target.parent)}; create it first")


def load_plan(folder: str | Path) -> Plan:
    """Read a plan folder.

    Raises:
        PlanError: it is missing, damaged, or of another schema; the message names the key.
    """
    source = Path(folder)
    path = source / "plan.json"
    file = _read(path, _File, SCHEMA)
    if not {"before", "after"} <= file.predicted.keys():
        raise PlanError(f"{visible(path)}: predicted: needs before and after")
    return Plan(
        pattern=file.pattern,
        structure_digest=file.structure_digest,
        weights_digest=file.weights_digest,
        groups=tuple(_planned(group, visible(path)) for group in file.groups),
        masks=_load_masks(source, file.masks),
        recipe=file.recipe,
        predicted=(Cost(**dict(file.predicted["before"])), Cost(**dict(file.predicted["after"]))),
        seed=file.seed,
        versions=file.versions,
        skipped=tuple(Skipped(entry.name, entry.reason) for entry in file.skipped),
        graph=_load_graph(source / "graph.json"),
    )


def has_masks(folder: str | Path) -> bool:
    """Tell whether a plan that `save_plan` wrote sets weights to zero, without reading all of it."""
    return (Path(folder) / _MASKS).is_file()


def _load_graph(path: Path) -> Outline | None:
    """Return the outline of the graph, None where an earlier version wrote the plan."""
    return _read(path, graph_file.GraphFile, graph_file.SCHEMA).outline() if path.exists() else None


def _read(path: Path, kind: type[_Kind], schema: int) -> _Kind:
    """Read a JSON document of a plan.

    Raises:
        PlanError: it is missing, damaged, or of another schema; the message names the key.
    """
    where = visible(path)
    text = _contents(path)
    try:
        file = kind.model_validate(parse_json(text))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise PlanError(f"{where}: is no JSON: {one_line(error)}") from None
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise PlanError(f"{where}: {one_line(place)}: {one_line(first['msg'])}") from None
    if file.schema_number != schema:
        raise PlanError(
            f"{where}: has schema {file.schema_number}, this version reads {schema}; make the plan anew"
        )
    return file


def _contents(path: Path) -> bytes:
    if not path.exists():
        raise PlanError(
            f"{visible(path)}: cannot be read (no such file); a plan is a folder that prune wrote"
        )
    return contents(path, PlanError, _LARGEST_JSON_BYTES, "is larger than any plan; is it the right file?")


def _planned(group: _Group, where: str) -> PlannedGroup:
    removed = np.array(group.removed, dtype=np.int64)
    if len(np.unique(removed)) != len(removed) or ((removed < 0) | (removed >= group.size)).any():
        raise PlanError(
            f"{where}: group {quoted(group.name)}: removed channels must be different, below {group.size}"
        )
    if len(removed) >= group.size:
        raise PlanError(f"{where}: group {quoted(group.name)}: no channel would be left")
    members = tuple(
        PlannedMember(m.tensor, m.axis, m.size, m.consumer, m.contracted, _positions(m, where))
        for m in group.members
    )
    if group.branches and len(group.branches) != group.size:
        raise PlanError(
            f"{where}: group {quoted(group.name)}: has {len(group.branches)} branches, not {group.size}"
        )
    branches = tuple(PlannedBranch(b.name, b.value, tuple(b.weights), b.score) for b in group.branches)
    gone = removed.astype(np.int32)
    return PlannedGroup(
        group.name, group.kind, group.size, gone, members, group.skipped, group.exact, branches
    )


def _positions(member: _Member, where: str) -> IntArray:
    """Return the removed positions of a member, checked against the length of its axis."""
    positions = np.array(member.removed, dtype=np.int64)
    if (np.diff(positions) <= 0).any() or ((positions < 0) | (positions >= member.size)).any():
        raise PlanError(
            f"{where}: {quoted(member.tensor)}: removed positions must ascend below {member.size}"
        )
    return positions.astype(np.int32)


def _places_of(path: Path, names: set[str]) -> dict[str, tuple[int, int]]:
    """Return start and length of each tensor of bytes in a safetensors file whose header is valid."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
    places = {}
    for name in names:
        start, end = header[name]["data_offsets"]
        if header[name]["dtype"] == "U8" and header[name]["shape"] == [end - start]:
            places[name] = (8 + length + start, end - start)
    return places


def _bits_at(path: Path, start: int, count: int) -> npt.NDArray[np.uint8]:
    """Read one mask; all of them may be larger than memory."""
    bits = np.fromfile(path, dtype=np.uint8, count=count, offset=start)
    if bits.size != count:
        raise PlanError(f"{visible(path)}: changed while it was read; start again")
    return bits


def _write_masks(masks: Mapping[str, Mask], stream: IO[bytes]) -> None:
    """Write masks as safetensors does, one after the other: together they may be larger than memory."""
    header: dict[str, Any] = {}
    end = 0
    for name in sorted(masks):
        start, end = end, end + (masks[name].size + 7) // 8
        header[name] = {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in sorted(masks):
        stream.write(masks[name].bits.data)


def _load_masks(source: Path, entries: Mapping[str, _MaskEntry]) -> dict[str, Mask]:
    if not entries:
        return {}
    path = source / _MASKS
    where = visible(path)
    counts = {name: (math.prod(entry.shape) + 7) // 8 for name, entry in entries.items()}
    with opened(path, PlanError) as stream:
        most_bytes = sum(counts.values()) + _LARGEST_HEADER_BYTES
        if os.fstat(stream.fileno()).st_size > most_bytes:
            raise PlanError(f"{where}: is larger than the masks that plan.json names")
    try:
        with safetensors.safe_open(path, framework="np") as file:  # checks the header, and reads no mask
            places = _places_of(path, set(file.keys()))
    except OSError as error:
        raise PlanError(f"{where}: cannot be read ({one_line(error.strerror or error)})") from None
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise PlanError(f"{where}: is damaged ({one_line(error)})") from None  # or of types numpy lacks
    masks, store = {}, MaskStore()
    for name, entry in entries.items():
        start, count = places.get(name, (0, -1))
        if count != counts[name]:
            raise PlanError(f"{where}: the mask of {quoted(name)} is missing or has another size")
        masks[name] = store.keep(Mask(tuple(entry.shape), _bits_at(path, start, count)))
        if masks[name].kept != entry.kept:
            raise PlanError(
                f"{where}: the mask of {quoted(name)} keeps {masks[name].kept} weights, "
                f"plan.json says {entry.kept}"
            )
    return masks


def _as_json(plan: Plan) -> dict[str, Any]:
    before, after = plan.predicted
    return {
        "schema": SCHEMA,
        "pattern": plan.pattern,
        "structure_digest": plan.structure_digest,
        "weights_digest": plan.weights_digest,
        "recipe": dict(plan.recipe),
        "seed": plan.seed,
        "versions": dict(plan.versions),
        "predicted": {"before": _cost(before), "after": _cost(after)},
        "groups": [
            {
                "name": group.name,
                "kind": group.kind,
                "size": group.size,
                "removed": group.removed.tolist(),
                "skipped": group.skipped,
                "exact": group.exact,
                "members": [
                    {
                        "tensor": member.tensor,
                        "axis": member.axis,
                        "size": member.size,
                        "consumer": member.consumer,
                        "contracted": member.contracted,
                        "removed": member.removed.tolist(),
                    }
                    for member in group.members
                ],
                **_branches(group),
            }
            for group in plan.groups
        ],
        "masks": {name: {"shape": list(mask.shape), "kept": mask.kept} for name, mask in plan.masks.items()},
        "skipped": [{"name": entry.name, "reason": entry.reason} for entry in plan.skipped],
    }


def _branches(group: PlannedGroup) -> dict[str, Any]:
    if not group.branches:
        return {}
    entries = [
        {"name": b.name, "value": b.value, "weights": list(b.weights), "score": b.score}
        for b in group.branches
    ]
    return {"branches": entries}


def _cost(cost: Cost) -> dict[str, int]:
    return {"params": cost.params, "macs": cost.macs, "size_bytes": cost.size_bytes}
