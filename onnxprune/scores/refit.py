"""Importance of channels from data: what consumers lose without them once all other inputs are re-solved.

The loss is that of the best linear repair: ``min |W' x' - W x|**2 + ridge`` over all W' and a bias, with x'
the inputs without the channel, so what matters is what the other channels can't stand in for. All groups
are looked at by themselves, on the inputs of the model that was given.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.calibration.moments import Moments, collect_moments
from onnxprune.cholesky import factorize
from onnxprune.ops.labels import LabelArray
from onnxprune.ops.linear import Linear, find_linear
from onnxprune.scores.filters import places_of
from onnxprune.scores.structured_obs import Layer, removal_order, rising
from onnxprune.scores.subject import Owners, Subject, owners_of, sides_of
from onnxprune.types import BoolArray, FloatArray, IntArray

#: Inputs whose variance is this share of their mean square are constant but for the rounding of moments.
_CONSTANT = 3e-5

#: Inputs of a consumer from which on its inverse takes minutes: a kernel of 3x3 over 256 channels has 2304.
_WIDE = 2560


def loss_after_refit(subject: Subject) -> Mapping[str, FloatArray | str]:
    """score[c] = the greatest step, up to c, of the losses of the best order in which channels go one by one

    The loss of a step is the sum over all linear consumers of the group of ``1/2 trace(W_B ([H^-1]_BB)^-1
    W_B^T)``: the mean square, over samples and positions, by which their outputs change when the block B of
    the columns of one channel (all taps of a kernel, all places of a head) goes and all others are re-solved,
    with an intercept; as a share of the variance of each consumer's outputs, so that losses compare and add
    up over the whole model. H and W are those that are left after the steps before (see `structured_obs`),
    and H is twice the covariance of the inputs, damped; by parts where a convolution has groups. Where
    channels are whole groups of a convolution, its outputs go as well, and count where they are consumed.

    Operations: for each consumer of n inputs and o outputs O(n^2) for each row of data, and O(n^3 + n^2 o).
    Groups whose second moments do not fit the limit of memory together follow in further passes over the
    data; a group that does not fit alone has a reason in place of figures.

    Raises:
        UsageError, DataError, LimitMissed, RuntimeFailure: as of `collect_moments`.
    """
    consumers = _consumers(subject)
    scores: dict[str, FloatArray | str] = {}
    for name, uses in consumers.items():
        if _needed(uses) > subject.running.limit_bytes:
            scores[name] = (
                f"score 'obs' needs {_needed(uses)} bytes for the second moments of its consumers, more than "
                f"the limit of {subject.running.limit_bytes}; raise the limit to that"
            )
    passes = list(
        _passes([name for name in consumers if name not in scores], consumers, subject.running.limit_bytes)
    )
    sizes = {group.name: group.size for group in subject.groups}
    for number, names in enumerate(passes):
        rows = _measured_rows(
            subject, [use for name in names for use in consumers[name]], number, len(passes)
        )
        readers = Counter(use.rows for name in names for use in consumers[name])
        for name in names:
            layers: list[Layer] = []
            for use in consumers[name]:
                readers[use.rows] -= 1
                last = readers[use.rows] == 0
                layers += use.layers(rows.pop(use.rows) if last else deepcopy(rows[use.rows]))
            scores[name] = rising(*removal_order(layers, sizes[name]))
    return scores


def too_wide(subject: Subject, most: int = _WIDE) -> dict[str, str]:
    """Return the groups for which the score takes long, and why: the cube of the inputs of their consumers.

    Args:
        subject: model and groups.
        most: inputs of a consumer, in one part of a grouped layout, that do not.
    """
    widest = {
        name: max(linear.inputs for use in uses for linear in use.linears)
        for name, uses in _consumers(subject).items()
    }
    return {
        name: f"a consumer has {inputs} inputs, and its time grows with their cube; --score obs takes it"
        for name, inputs in widest.items()
        if inputs > most
    }


#: Where a linear node reads: the node, and which of its inputs.
_Place: TypeAlias = tuple[ir.Node, int]


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of rows that linear nodes read.

    Attributes:
        parts: of each part of a grouped layout the inverse Hessian, float64 [inputs, inputs], and bool
            [inputs]: which inputs vary.
        variances: of the outputs of each node, in all: the sum over them of E[(y - E[y])^2].
    """

    parts: Sequence[tuple[FloatArray, BoolArray]]
    variances: Mapping[_Place, float]

    def __deepcopy__(self, known: dict[int, object]) -> _Rows:
        return _Rows([(inverse.copy(), varies) for inverse, varies in self.parts], self.variances)


@dataclass(frozen=True, slots=True)
class _Use:
    """The channels of one group among the inputs of linear nodes that read the same rows.

    Attributes:
        rows: what these nodes have in common, and their second moments with it.
        linears: the nodes.
        columns: int32 [size, places] by part of a grouped layout: the columns of each channel, -1 for none.
    """

    rows: Hashable
    linears: tuple[Linear, ...]
    columns: Mapping[int, IntArray]

    @property
    def bytes(self) -> int:
        """Of the second moments."""
        first = self.linears[0]
        return 8 * first.groups * first.inputs**2

    def layers(self, rows: _Rows) -> Iterator[Layer]:
        """Yield a layer for each part, which takes the inverse over, with outputs of variance 1."""
        matrices = [
            linear.matrix(linear.found.tensor.numpy())
            / np.float32(math.sqrt(rows.variances[linear.node, linear.operand]) or 1.0)
            for linear in self.linears
        ]
        for part, columns in self.columns.items():
            inverse, varies = rows.parts[part]
            weights = np.concatenate([matrix[part] for matrix in matrices], axis=0).T * varies[:, None]
            yield Layer(inverse, np.ascontiguousarray(weights, dtype=np.float64), columns.copy())


def _bytes(uses: Sequence[_Use]) -> int:
    return sum({use.rows: use.bytes for use in uses}.values())


def _needed(uses: Sequence[_Use]) -> int:
    """Return the bytes for the inverses of all rows, and for collecting the moments of the largest."""
    return _bytes(uses) + 3 * max(use.bytes for use in uses)


def _passes(
    names: Sequence[str], consumers: Mapping[str, Sequence[_Use]], limit_bytes: int
) -> Iterator[list[str]]:
    """Yield the groups of each pass over the data."""
    share: list[str] = []
    uses: list[_Use] = []
    for name in names:
        more = [*uses, *consumers[name]]
        copies = max(_bytes(consumers[other]) for other in (*share, name))  # where groups share rows
        if share and max(_needed(more), _bytes(more) + copies) > limit_bytes:
            yield share
            share, more = [], [*consumers[name]]
        share.append(name)
        uses = more
    if share:
        yield share


def _measured_rows(subject: Subject, uses: Sequence[_Use], number: int, passes: int) -> dict[Hashable, _Rows]:
    """Return what is known of all rows that are read."""
    readers: dict[Hashable, dict[_Place, Linear]] = {}
    for use in uses:
        for linear in use.linears:
            readers.setdefault(use.rows, {})[linear.node, linear.operand] = linear
    keys = list(readers)
    progress = subject.progress
    found = collect_moments(
        subject.model,
        [next(iter(readers[key].values())) for key in keys],
        subject.data,
        batch=subject.running.batch,
        threads=subject.running.threads,
        workers=subject.running.workers,
        limit_bytes=subject.running.limit_bytes - _bytes(uses),
        progress=None if progress is None else lambda done: progress((number + done) / passes),
    )
    return {keys[place]: _rows(moments, readers[keys[place]]) for place, moments in found}


def _rows(moments: Moments, readers: Mapping[_Place, Linear]) -> _Rows:
    variances = dict.fromkeys(readers, 0.0)
    parts = []
    name = str(next(iter(readers))[0].name)
    for part in range(len(moments.second)):
        centred, varies = _centred(moments, part)
        for place, linear in readers.items():
            matrix = linear.matrix(linear.found.tensor.numpy())[part].astype(np.float32)
            products = matrix @ centred.astype(np.float32)
            total = float(np.einsum("oi,oi->", products, matrix, dtype=np.float64))
            variances[place] += max(total, 0.0) / max(moments.count, 1)
        parts.append((factorize(centred, moments.count, layer=name).inverse(overwrite=True), varies))
    return _Rows(parts, variances)


def _centred(moments: Moments, part: int) -> tuple[FloatArray, BoolArray]:
    """Return the sum of squares and products about the means, and which inputs vary.

    An intercept takes over what is constant: its inputs are left out, as those that are always zero.
    """
    squares = np.diagonal(moments.second[part])
    mean = moments.first[part] / max(moments.count, 1)
    centred = moments.second[part] - np.outer(moments.first[part], mean)
    varies = np.asarray(np.diagonal(centred) > _CONSTANT * squares)
    centred *= varies
    centred *= varies[:, None]
    return centred, varies


# --- which columns belong to which channels -----------------------------------------------------------------


def _consumers(subject: Subject) -> dict[str, list[_Use]]:
    """Return the linear nodes that sum over the channels of each group; groups without any are left out."""
    linears, _ = find_linear(subject.model)
    labels = {
        (contraction.node, side.operand): side.labels
        for contraction in subject.channels.contractions
        for side in sides_of(subject.channels, contraction)
    }
    owners = owners_of(subject)
    found: dict[str, list[_Use]] = {group.name: [] for group in subject.groups}
    for linear in linears:
        for number, columns in _columns(linear, labels.get((linear.node, linear.operand)), owners, subject):
            _add(found[subject.groups[number].name], _Use(linear.row_key, (linear,), columns))
    return {name: uses for name, uses in found.items() if uses}


def _columns(
    linear: Linear, labels: LabelArray | None, owners: Owners, subject: Subject
) -> Iterator[tuple[int, dict[int, IntArray]]]:
    """Yield the number of each group that a linear node sums over, and columns by part as of `_Use`."""
    channels = linear.inputs // linear.taps
    if labels is None or len(labels) not in (channels, linear.groups * channels):
        return
    for number, channel_at in owners.of(labels):
        by_part = np.broadcast_to(channel_at.reshape(-1, channels), (linear.groups, channels))
        columns = {}
        for part, inputs in enumerate(by_part):
            if linear.groups > 1 and inputs[0] >= 0 and (inputs == inputs[0]).all():
                continue  # the outputs of a part without inputs go with it
            if (inputs >= 0).any():
                places = places_of(inputs, subject.groups[number].size)[:, :, None]
                taps = np.where(places >= 0, places * linear.taps + np.arange(linear.taps), -1)
                columns[part] = taps.reshape(len(places), -1).astype(np.int32)
        if columns:
            yield number, columns


def _add(uses: list[_Use], new: _Use) -> None:
    """Add a use; weights that read the same rows in the same places are stacked."""
    for place, known in enumerate(uses):
        same = known.rows == new.rows and known.columns.keys() == new.columns.keys()
        if same and all(np.array_equal(known.columns[part], new.columns[part]) for part in new.columns):
            uses[place] = replace(known, linears=(*known.linears, *new.linears))
            return
    uses.append(new)
