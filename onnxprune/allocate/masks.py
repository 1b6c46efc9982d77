"""Which weights become zero: unstructured, N:M along the summed axis, or in blocks.

Tensors are read one at a time and never changed. Ties are broken by position: of equal scores, the first goes
first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from onnxprune.allocate.selection import Piece, Selector, Stream, find_cut
from onnxprune.errors import ModelError, PlanError, UsageError
from onnxprune.model.mask_store import MaskStore
from onnxprune.model.nonfinite import describe_nonfinite, first_nonfinite
from onnxprune.model.streaming import in_bands, read_pieces
from onnxprune.ops.weights import FoundWeight, locate_weights, other_readers
from onnxprune.patterns import Pattern, as_matrices, block_sums, parse_pattern, spread_blocks
from onnxprune.registry import did_you_mean
from onnxprune.types import BoolArray, FloatArray, Mask, Skipped, WeightUse

if TYPE_CHECKING:
    import onnx_ir as ir

Array: TypeAlias = npt.NDArray[Any]
Scope: TypeAlias = Literal["uniform", "global", "owl", "sensitivity"]

#: How much each tensor gives: the same share, whatever lies below one threshold, less where outliers are, or
#: what costs least by trials.
SCOPES = ("uniform", "global", "owl", "sensitivity")

#: Why a tensor without zeros has no mask.
NOTHING_GOES = "no weight of it is among those that go"

#: Types whose weights are scored; all but the last are exact in float32.
_SCORED_TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")

#: Elements that are ranked at a time, to bound the memory of sorting.
_BAND_ELEMENTS = 1 << 20

#: Runs up to this length are ranked by comparing all pairs, longer ones by sorting.
_MOST_COMPARED = 16

#: Scores are kept between passes up to this size; beyond, they are worked out again.
_KEPT_BYTES = 128 << 20


class WeightScorer(Protocol):
    """What scores single weights: see ``score.weights``."""

    @property
    def start(self) -> Callable[[str, int, Callable[[], Iterator[Array]]], Callable[[Array], Array]]:
        """(tensor name, seed, reads its pieces) -> the scorer of that tensor's pieces, in order."""

    @property
    def power(self) -> float:
        """Weights that go together score as mean(score**power)**(1/power)."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A tensor that may be masked, with the axes its uses agree on."""

    weight: FoundWeight
    scorer: WeightScorer
    seed: int
    gone: Mask | None = None
    read: Callable[[ir.TensorProtocol], Iterator[Array]] = read_pieces

    @property
    def name(self) -> str:
        return self.weight.use.tensor

    @property
    def size(self) -> int:
        return math.prod(self.weight.shape)

    @property
    def wide(self) -> bool:
        return self.weight.tensor.dtype.name == "DOUBLE"

    def pieces(self) -> Iterator[tuple[Array, None]]:
        """Yield the scores of all weights in order, flat.

        Raises:
            ModelError: a weight is not a finite number.
        """
        score = self.scorer.start(self.name, self.seed, self._read)
        gone = None if self.gone is None else self.gone.bits
        start = 0
        for piece in self._read():
            scores = score(piece)
            yield (scores if gone is None else _gone_first(scores, gone, start)), None
            start += piece.size

    def _read(self) -> Iterator[Array]:
        start = 0
        for piece in self.read(self.weight.tensor):
            check_finite(piece, start, self.name, self.weight.shape)
            yield piece
            start += piece.size

    def scores(self) -> Array:
        """Return the scores of all weights in the shape of the tensor."""
        scores = np.empty(self.size, dtype=np.float64 if self.wide else np.float32)
        start = 0
        for piece, _ in self.pieces():
            scores[start : start + piece.size] = piece
            start += piece.size
        return scores.reshape(self.weight.shape)


def _gone_first(scores: Array, gone: npt.NDArray[np.uint8], start: int) -> Array:
    """Return the scores of some flat weights, from place ``start`` on, where those that are gone come first.

    Scores are not negative: what is gone gets 0, and everything else more than that.
    """
    bits = gone[start // 8 : (start + scores.size + 7) // 8]  # pieces begin at whole bytes
    kept = np.unpackbits(bits, count=scores.size).astype(np.bool_).reshape(scores.shape)
    least = scores.dtype.type(np.finfo(np.float32).tiny)
    return np.asarray(np.where(kept, np.maximum(scores, least), scores.dtype.type(0)))


def choose_masks(
    model: ir.Model,
    uses: Sequence[WeightUse],
    *,
    pattern: str,
    amount: float | None,
    scorer: WeightScorer,
    scope: Scope = "uniform",
    seed: int = 0,
    protect: Sequence[str] = (),
    shares: Mapping[str, float] | None = None,
    gone: Mapping[str, Mask] | None = None,
    read: Callable[[ir.TensorProtocol], Iterator[Array]] = read_pieces,
) -> tuple[dict[str, Mask], list[Skipped]]:
    """Choose which weights become zero.

    Args:
        model: not changed; external tensors are streamed.
        uses: the weights to consider, from ``find_weights``.
        pattern: "unstructured"; "N:M": at most N of every M weights along the summed axis stay (for each tap
            of a convolution separately); "block:RxC": blocks of R outputs by C inputs stay or go whole, those
            at the edges are smaller, and all compete by their mean.
        amount: share of the weights to remove, in (0, 1); None for N:M, which says it itself.
        scorer: which weights matter.
        scope: the same share of every tensor, the lowest of all tensors together, or ``shares``.
        seed: for scores that draw at random.
        protect: patterns (``*``, ``?``) of tensor or consumer names that are left alone.
        shares: what single tensors give instead of the amount, each for itself.
        gone: masks by tensor name: what is gone already, which counts, and goes before everything else.
        read: reads a tensor as `read_pieces` does.

    Returns:
        Masks by tensor name, and the tensors that were left alone with the reasons.

    Raises:
        UsageError: the pattern or the amount makes no sense.
        PlanError: a use names a weight that the model does not have.
        ModelError: a weight is NaN or infinite, or a file can't be read.
    """
    wanted = parse_pattern(pattern)
    share = check_amount(wanted, amount)
    if scope not in SCOPES:
        raise UsageError(f"unknown scope {scope!r}{did_you_mean(scope, SCOPES)}; known: {', '.join(SCOPES)}")
    weights, skipped = select_weights(model, uses, wanted, protect)
    candidates = [
        _Candidate(found[0], scorer, seed, (gone or {}).get(name), read) for name, found in weights.items()
    ]
    masks: dict[str, Mask] = {}
    store = MaskStore()
    if wanted.kind == "N:M":
        masks = {candidate.name: store.keep(_mask_runs(candidate, wanted)) for candidate in candidates}
    else:
        batches = [candidates] if scope == "global" else [[candidate] for candidate in candidates]
        for batch in filter(None, batches):
            mine = share if shares is None else shares.get(batch[0].name, share)
            masks |= _mask_lowest(batch, wanted, mine, store)
    empty = [name for name, mask in masks.items() if is_full(mask)]
    skipped += [Skipped(name, NOTHING_GOES) for name in empty]
    return {name: mask for name, mask in masks.items() if name not in empty}, skipped


def check_amount(pattern: Pattern, amount: float | None) -> float:
    """Return the share of the weights that a pattern removes.

    Raises:
        UsageError: it needs an amount, contradicts it, or the amount is none.
    """
    if pattern.kind == "N:M":
        share = 1 - pattern.keep / pattern.run
        if amount is not None and not math.isclose(amount, share, abs_tol=1e-6):
            raise UsageError(f"pattern {pattern} always removes {share:g}; leave the amount out")
        return share
    if amount is None:
        raise UsageError(f"pattern {pattern} needs an amount between 0 and 1")
    if not 0 < amount < 1:  # also refuses NaN
        raise UsageError(f"amount {amount!r}: give the share of weights to remove, between 0 and 1")
    return amount


# --- which tensors ----------------------------------------------------------------------------------------


def select_weights(
    model: ir.Model, uses: Sequence[WeightUse], pattern: Pattern, protect: Sequence[str]
) -> tuple[dict[str, list[FoundWeight]], list[Skipped]]:
    """Return the uses of each tensor that can be masked, by name, and why the others can't.

    Raises:
        PlanError: a use names a weight that the model does not have.
    """
    located, _ = locate_weights(model)
    wanted = set(uses)
    by_tensor: dict[str, list[FoundWeight]] = {}
    for weight in located:
        if weight.use in wanted:
            by_tensor.setdefault(weight.use.tensor, []).append(weight)
    missing = next((use for use in uses if use.tensor not in by_tensor), None)
    if missing is not None:
        raise PlanError(
            f"the model has no weight {missing.tensor!r} at {missing.consumer!r}; find weights again"
        )
    chosen: dict[str, list[FoundWeight]] = {}
    skipped = []
    for name, weights in by_tensor.items():
        reason = _why_not(weights, located, pattern, protect)
        if reason is None:
            chosen[name] = weights
        else:
            skipped.append(Skipped(name, reason))
    return chosen, skipped


def _why_not(
    weights: Sequence[FoundWeight], located: Sequence[FoundWeight], pattern: Pattern, protect: Sequence[str]
) -> str | None:
    first = weights[0]
    names = [first.use.tensor, *(weight.use.consumer for weight in weights)]
    glob = next((glob for glob in protect if any(fnmatchcase(name, glob) for name in names)), None)
    if glob is not None:
        return f"protected by {glob!r}"
    if len({id(weight.stored) for weight in weights}) > 1:
        return "several tensors have this name; rename those in subgraphs"
    if first.quantized or first.tensor.dtype.name not in _SCORED_TYPES:
        return f"it holds {first.tensor.dtype.name.lower()} numbers; prune before quantizing"
    if math.prod(first.shape) == 0:
        return "it is empty"
    readers = other_readers(first.stored, located)
    if readers:
        return f"it is also read by {readers[0]}, which does not sum over it"
    if pattern.kind == "unstructured":
        return None
    layouts = {(weight.use.summed_axis, weight.use.output_axis, weight.groups) for weight in weights}
    if len(layouts) > 1:
        consumers = ", ".join(weight.use.consumer for weight in weights[:3])
        return f"it is tied, and its uses ({consumers}) sum over different axes"
    return _why_too_small(first, pattern)


def _why_too_small(weight: FoundWeight, pattern: Pattern) -> str | None:
    length = weight.summed_length
    if pattern.kind == "block":
        rows = weight.shape[weight.use.output_axis]
        columns = weight.shape[weight.use.summed_axis]
        if rows < pattern.rows or columns < pattern.columns:
            return f"it is smaller than one block: {rows} x {columns}"
        return None
    if length == 1:
        return "each output sums over one channel (depthwise)"
    if length < pattern.run:
        return f"each output sums over {length} channels, fewer than {pattern.run}"
    if length % pattern.run:
        return (
            f"each output sums over {length} channels, not a multiple of {pattern.run} as sparse kernels ask"
        )
    return None


def check_finite(piece: Array, start: int, name: str, shape: tuple[int, ...]) -> None:
    """Refuse NaN and infinity.

    Args:
        piece: some of the flat weights.
        start: the place of the first.
        name: of the tensor.
        shape: of the tensor.

    Raises:
        ModelError: naming the first of them.
    """
    flat = piece.reshape(-1)
    position = first_nonfinite(flat)
    if position is not None:
        raise ModelError(describe_nonfinite(name, shape, start + position, flat[position]))


# --- the patterns -----------------------------------------------------------------------------------------


def _mask_lowest(
    batch: Sequence[_Candidate], pattern: Pattern, share: float, store: MaskStore
) -> dict[str, Mask]:
    """Remove the lowest weights or blocks of all tensors of a batch together."""
    total = sum(candidate.size for candidate in batch)
    target = min(round(share * total), total - 1)
    if target == 0:
        return {candidate.name: store.keep(_full_mask(candidate)) for candidate in batch}
    blocks = pattern.kind == "block"
    wide = blocks or any(candidate.wide for candidate in batch)
    streams = [_kept(candidate, pattern, len(batch)) for candidate in batch]
    selector = Selector(find_cut(streams, target, wide=wide))
    masks = {}
    for candidate, stream in zip(batch, streams, strict=True):
        kept = (selector.keep(scores, sizes) for scores, sizes in stream())
        mask = _spread(candidate, pattern, np.concatenate(list(kept))) if blocks else _pack(candidate, kept)
        masks[candidate.name] = store.keep(mask)
    return masks


def _mask_runs(candidate: _Candidate, pattern: Pattern) -> Mask:
    """Keep the N highest of every M weights along the summed axis."""
    shape, axis = candidate.weight.shape, candidate.weight.use.summed_axis
    behind = math.prod(shape[axis + 1 :])
    scores = (piece for piece, _ in candidate.pieces())
    bands = in_bands(scores, pattern.run * behind, 8 if candidate.wide else 4)
    lowest = pattern.run - pattern.keep
    kept = (_not_lowest(band.reshape(-1, pattern.run, behind), lowest) for band in bands)
    return _pack(candidate, (band.reshape(-1) for band in kept))


def _not_lowest(runs: Array, lowest: int) -> BoolArray:
    """Return where a score of ``runs`` [.., run, ..] is not among the ``lowest`` of its run.

    Of equal scores, the first is the lower one.
    """
    length = runs.shape[1]
    if length > _MOST_COMPARED:
        kept = np.ones(runs.shape, dtype=np.bool_)
        order = np.argsort(runs, axis=1, kind="stable")[:, :lowest]
        np.put_along_axis(kept, order, False, axis=1)
        return kept
    # Sorting short runs one by one takes ten times as long as comparing all pairs of places.
    places = np.ascontiguousarray(np.moveaxis(runs, 1, 0))
    beaten = np.empty(places.shape, dtype=np.int8)
    beaten[:] = np.arange(length, dtype=np.int8).reshape(-1, 1, 1)  # all before it, until one is higher
    higher = np.empty(places[0].shape, dtype=np.bool_)
    counted = higher.view(np.int8)
    for first in range(length):
        for second in range(first + 1, length):
            np.greater(places[first], places[second], out=higher)
            beaten[first] += counted
            beaten[second] -= counted
    return np.moveaxis(beaten >= lowest, 0, 1)


def _kept(candidate: _Candidate, pattern: Pattern, count: int) -> Stream:
    """Return what yields the scores to rank; the first pass keeps them if those of ``count`` tensors fit."""
    blocks = pattern.kind == "block"
    stream: Stream = partial(_block_scores, candidate, pattern) if blocks else candidate.pieces
    entries = candidate.size // (pattern.rows * pattern.columns) if blocks else candidate.size
    if entries * (8 if blocks or candidate.wide else 4) * count > _KEPT_BYTES:
        return stream
    kept: list[Piece] = []

    def from_memory() -> Iterator[Piece]:
        if kept:
            yield from kept
            return
        seen = []
        for piece in stream():
            seen.append(piece)
            yield piece
        kept.extend(seen)

    return from_memory


def _block_scores(candidate: _Candidate, pattern: Pattern) -> Iterator[tuple[Array, Array]]:
    """Yield score (float64) and size (int64) of the blocks: by matrix, row of blocks, column of blocks."""
    use, power = candidate.weight.use, candidate.scorer.power
    scores = candidate.scores()
    scale = float(scores.max()) or 1.0  # squares of float64 weights could overflow
    for matrix in as_matrices(scores, use.output_axis, use.summed_axis):
        height = max(1, _BAND_ELEMENTS // (matrix.shape[1] * pattern.rows)) * pattern.rows
        for start in range(0, len(matrix), height):
            powers = matrix[start : start + height].astype(np.float64) / scale
            if power == 2.0:
                np.multiply(powers, powers, out=powers)  # ten times as fast as a power
            elif power != 1.0:
                powers **= power
            sums, sizes = block_sums(powers, pattern, 0, 1)
            means = np.divide(sums, sizes, out=sums).reshape(-1)
            if power == 2.0:
                np.sqrt(means, out=means)
            elif power != 1.0:
                means **= 1 / power
            yield np.multiply(means, scale, out=means), _counts(sizes)


def _counts(sizes: FloatArray) -> npt.NDArray[np.int64]:
    """Return sizes of blocks, flat, as integers; one for all where they are equal."""
    first = int(sizes.flat[0])
    if (sizes == first).all():
        return np.broadcast_to(np.int64(first), sizes.size)
    return sizes.reshape(-1).astype(np.int64)


def _spread(candidate: _Candidate, pattern: Pattern, kept: BoolArray) -> Mask:
    use, shape = candidate.weight.use, candidate.weight.shape
    rows = math.ceil(shape[use.output_axis] / pattern.rows)
    columns = math.ceil(shape[use.summed_axis] / pattern.columns)
    blocks = kept.reshape(-1, rows, columns)
    return Mask.pack(spread_blocks(blocks, pattern, shape, use.output_axis, use.summed_axis))


def _pack(candidate: _Candidate, kept: Iterator[BoolArray]) -> Mask:
    """Pack the pieces of a tensor; each but the last is a multiple of 8 weights long."""
    return Mask(candidate.weight.shape, np.concatenate([np.packbits(piece) for piece in kept]))


def _full_mask(candidate: _Candidate) -> Mask:
    return Mask.pack(np.ones(candidate.weight.shape, dtype=np.bool_))


def is_full(mask: Mask) -> bool:
    """Tell whether a mask removes nothing."""
    return mask.kept == mask.size
