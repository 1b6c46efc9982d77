"""The nouns that pass between stages: frozen values, no behaviour beyond arithmetic on themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.outlines import Outline

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

BranchKind = Literal["attention", "feed_forward", "convolution", "recurrent", "other"]
Kind = Literal["channels", "heads", "head_dim", "hidden", "experts"]
Metric = Literal["params", "macs", "bytes", "latency_ms", "sparsity"]


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one weight, as one use of it sees it, and the channel of each of its positions.

    Attributes:
        tensor: name of the initializer.
        axis: the axis whose positions belong to channels.
        channel_at: int32 [dim]; the channel of each position, -1 where it belongs to another group.
        contracted: the axis is summed over, so a zero here equals a cut here.
        consumer: name of the node that uses the tensor (a tied tensor has one member for each use).
    """

    tensor: str
    axis: int
    channel_at: IntArray
    contracted: bool
    consumer: str


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """Channels that compete: they live on the same axes of the same tensors.

    Attributes:
        name: stable and readable; from the first weight that produces the channels.
        kind: what a channel is.
        size: number of channels.
        members: every (tensor, axis) that shrinks when a channel goes.
        frozen: why no channel of the group may be removed, or None.
        exact: cutting equals zeroing; False where statistics over the axis change with a cut.
    """

    name: str
    kind: Kind
    size: int
    members: tuple[Member, ...]
    frozen: str | None = None
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch: the f of y = x + f(x). Everything is named as in the model it was found in.

    Attributes:
        name: stable and readable; what the names of its weights have in common.
        kind: what it does.
        node: name of the node that adds f.
        operand: which of that node's inputs f is.
        value: name of f.
        total: name of y, the whole sum.
        axis: the feature axis of y.
        weights: the tensors that it computes with.
        freed: those of them that nothing else reads, so that they go with it.
        stays: nodes inside it that hold weights and stay, because something else needs them.
    """

    name: str
    kind: BranchKind
    node: str
    operand: int
    value: str
    total: str
    axis: int
    weights: tuple[str, ...]
    freed: tuple[str, ...] = ()
    stays: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """Importance: higher is kept longer.

    Attributes:
        scorer: the registry name of the method.
        channels: float64 [channel] by group name.
        data_digest: sha256 of the calibration data the scores depend on, None for scores from weights alone.
        unmeasured: why a group has no figures, by group name.
        stand_ins: why a group has the figures of another score, by group name.
        losses: figures are losses that compare between groups, and that add up over what goes.
    """

    scorer: str
    channels: Mapping[str, FloatArray]
    data_digest: str | None = None
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    losses: bool = False

    @classmethod
    def of(
        cls,
        scorer: str,
        found: Mapping[str, FloatArray | str],
        data_digest: str | None = None,
        *,
        losses: bool = False,
    ) -> Scores:
        """Sort what a scorer found into figures, and reasons why a group has none."""
        figures = {name: value for name, value in found.items() if not isinstance(value, str)}
        reasons = {name: value for name, value in found.items() if isinstance(value, str)}
        return cls(scorer, figures, data_digest, reasons, losses=losses)


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may stay.

    Attributes:
        metric: what is counted; "sparsity" counts removed channels or weights directly.
        keep: ratio of the metric that may stay, in (0, 1].
        floor: the least share of every group that stays, in [0, 1]; at least one channel always does.
    """

    metric: Metric
    keep: float
    floor: float = 0.1


@dataclass(frozen=True, slots=True)
class Cost:
    """What a model costs, from its shapes alone.

    Attributes:
        params: elements of all floating-point and quantized weights (int).
        macs: multiply-accumulate operations for one sample (int).
        size_bytes: bytes of all tensors as stored.
    """

    params: int
    macs: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Curve:
    """What removing from one group alone costs, at several amounts.

    Attributes:
        name: of the channel group, or of the tensor.
        size: its channels, or weights.
        removed: int64 [points], ascending: how many of them are gone; the first is 0.
        increase: float64 [points]: the loss without them minus that of the whole model; the first is 0.
    """

    name: str
    size: int
    removed: npt.NDArray[np.int64]
    increase: FloatArray


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked. ``detail`` is one line with the figures that decided it."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something that was not pruned, and why: refusals are data."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a command found out, ready for a table or for JSON.

    Attributes:
        title: what was done, in a few words.
        sections: ordered tables of plain values: each a mapping (name -> value) or a list of such rows.
        checks: everything that was checked.
        skipped: what was left alone, and why.
        seconds: wall time by stage.
    """

    title: str
    sections: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True if no check failed."""
        return all(check.passed for check in self.checks)

    def without(self, section: str) -> Report:
        """Return the same report without one of its sections."""
        sections = {name: rows for name, rows in self.sections.items() if name != section}
        return replace(self, sections=sections)


@dataclass(frozen=True, slots=True)
class Mask:
    """Which weights of one tensor stay, one bit each, so that masks of gigabytes of weights stay small.

    Attributes:
        shape: shape of the masked tensor.
        bits: uint8 [ceil(elements / 8)], ``np.packbits`` of the flattened boolean mask; 1 = kept.
    """

    shape: tuple[int, ...]
    bits: npt.NDArray[np.uint8]

    @classmethod
    def pack(cls, kept: BoolArray) -> Mask:
        """Pack a boolean array (True = kept)."""
        return cls(tuple(kept.shape), np.packbits(kept))

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def kept(self) -> int:
        """Number of weights that stay."""
        return (
            int(np.bitwise_count(self.bits).sum(dtype=np.int64))
            if hasattr(np, "bitwise_count")
            else int(np.unpackbits(self.bits).sum(dtype=np.int64))
        )

    def unpack(self) -> BoolArray:
        """Return the boolean array (True = kept), shape ``shape``."""
        return np.unpackbits(self.bits, count=self.size).astype(np.bool_).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class WeightUse:
    """One weight as one node uses it.

    Attributes:
        tensor: name of the value that holds the stored weight (an initializer, or a Constant's output).
        consumer: name of the node that multiplies with it.
        op_type: operator of that node.
        summed_axis: axis of the *stored* tensor that the node sums over (N:M patterns go along it).
        output_axis: axis of the stored tensor that indexes the node's outputs.
    """

    tensor: str
    consumer: str
    op_type: str
    summed_axis: int
    output_axis: int


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided for one channel group.

    Attributes:
        group: the group as it was found.
        removed: int32 [removed channels], ascending; empty if nothing goes.
        skipped: why nothing was removed, or None.
    """

    group: ChannelGroup
    removed: IntArray
    skipped: str | None = None


@dataclass(frozen=True, slots=True)
class PlannedMember:
    """Which positions of one axis of one weight go.

    Attributes:
        tensor: name of the initializer.
        axis: the axis.
        size: positions along the axis before the cut.
        consumer: name of the node that uses the tensor.
        contracted: the node sums over the axis.
        removed: int32 [removed positions], ascending.
    """

    tensor: str
    axis: int
    size: int
    consumer: str
    contracted: bool
    removed: IntArray


@dataclass(frozen=True, slots=True)
class PlannedBranch:
    """One residual branch of a plan.

    Attributes:
        name: of the branch.
        value: name of f, in y = x + f(x).
        weights: the tensors that go with it.
        score: its importance; higher is kept longer.
    """

    name: str
    value: str
    weights: tuple[str, ...]
    score: float


@dataclass(frozen=True, slots=True)
class PlannedGroup:
    """What a plan does to one channel group, down to the positions of every tensor.

    Where whole residual branches go, a group holds the branches of one kind in place of channels.

    Attributes:
        name: of the group.
        kind: of the group.
        size: number of channels (or branches) before.
        removed: int32 [removed channels], ascending; empty if nothing goes.
        members: every axis that the group stands on.
        skipped: why nothing was removed, or None.
        exact: of the group: a cut equals zeroing.
        branches: one for each number below ``size`` where branches are removed, else empty.
    """

    name: str
    kind: Kind | BranchKind
    size: int
    removed: IntArray
    members: tuple[PlannedMember, ...]
    skipped: str | None = None
    exact: bool = True
    branches: tuple[PlannedBranch, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision, apart from any model: what to remove and what to zero.

    Attributes:
        pattern: "channels", "heads", "layers", "dead", "unstructured", "N:M" or "block:RxC".
        structure_digest: sha256 of the graph's structure (operators, edges, shapes; not the weights).
        weights_digest: sha256 of the weights that the scores were computed from.
        groups: every channel group, those left alone too (empty for mask patterns).
        masks: by tensor name (empty for structured patterns).
        recipe: the options that made the plan, plain JSON values.
        predicted: cost before and after.
        seed: of every random choice.
        versions: of the packages that matter.
        skipped: weights and groups that were left alone, with reasons.
        graph: what stands where in the graph that the names belong to: the prepared working copy, or where
            weights become zero the model with every constant as an initializer. None in plans of earlier
            versions, which apply only where all names are the same.
    """

    pattern: str
    structure_digest: str
    weights_digest: str
    groups: tuple[PlannedGroup, ...]
    masks: Mapping[str, Mask]
    recipe: Mapping[str, Any]
    predicted: tuple[Cost, Cost]
    seed: int
    versions: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()
    graph: Outline | None = None

    @property
    def removed(self) -> dict[str, IntArray]:
        """Int32 numbers of what goes, by group name, of the groups that lose anything."""
        return {group.name: group.removed for group in self.groups if len(group.removed)}
