"""Labels of positions: which positions live and die together, solved in numpy.

A position along an axis carries a *set* of labels, and is removed when any of them is. Labels are integers;
0 means "no label". A set is a row of an int32 array, so the labels of an axis are an array ``[dim, k]``, and
those of several axes that were split from one and not separated yet are one joint array ``[d1, d2, ..., k]``.

Three facts about labels are recorded, and together they describe every cut that keeps the graph consistent:

* two labels are the same (``a = b``): union-find over numpy arrays, in batches;
* a label is a product (``a = h or d``): it was the position ``(h, d)`` of a split axis, and one of the two
  axes was then needed alone, so every set that holds ``a`` holds ``h`` and ``d`` instead;
* a label is frozen: nothing that carries it may go, with the reason.

Sets that cannot be matched label by label are merged into one label. That is coarser than it might be, and
always consistent.
"""

from __future__ import annotations

from itertools import permutations
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy

LabelArray: TypeAlias = npt.NDArray[np.int32]

#: Factors of the largest product that is kept apart; beyond it, labels are merged.
MAX_FACTORS = 4
_NO_REASON = np.iinfo(np.int32).max


class Labels:
    """All labels of one graph, and what is known of them."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int32)
        self._product = np.full(1024, -1, dtype=np.int32)  # row in _factors, -1 for a plain label
        self._reason = np.full(1024, _NO_REASON, dtype=np.int32)  # first reason to freeze, by root
        self._count = 1  # label 0 stands for "no label"
        self._factors = np.zeros((1024, MAX_FACTORS), dtype=np.int32)  # one row for each product
        self._product_count = 0
        self._pending: list[tuple[LabelArray, LabelArray]] = []
        self._codes: dict[str, int] = {}  # of all reasons so far
        self.reasons: list[str] = []

    # --- creation -------------------------------------------------------------------------------------------

    def fresh(self, *shape: int) -> LabelArray:
        """Return new labels, int32 ``[*shape, 1]``: every position its own."""
        count = int(np.prod(shape, dtype=np.int64))
        while self._count + count > len(self._parent):
            self._grow()
        start, self._count = self._count, self._count + count
        labels = np.arange(start, self._count, dtype=np.int32)
        self._parent[start : self._count] = labels
        return labels.reshape(*shape, 1)

    def _grow(self) -> None:
        extra = len(self._parent)
        self._parent = np.concatenate([self._parent, np.zeros(extra, np.int32)])
        self._product = np.concatenate([self._product, np.full(extra, -1, np.int32)])
        self._reason = np.concatenate([self._reason, np.full(extra, _NO_REASON, np.int32)])

    # --- facts ----------------------------------------------------------------------------------------------

    def freeze(self, labels: LabelArray, reason: str) -> None:
        """Record that no position carrying any of ``labels`` may be removed."""
        code = self._codes.setdefault(reason, len(self.reasons))
        if code == len(self.reasons):
            self.reasons.append(reason)
        self._mark(self.resolve(labels).ravel(), code)

    def _mark(self, roots: LabelArray, reason: int) -> None:
        roots = roots[roots > 0]
        self._reason[roots] = np.minimum(self._reason[roots], reason)

    def equate(self, a: LabelArray, b: LabelArray, reason: str) -> None:
        """Record that the sets ``a[..., ka]`` and ``b[..., kb]`` are removed together, position by position.

        Args:
            a: labels, leading shape equal to that of ``b``.
            b: labels.
            reason: why labels of one are frozen where the other has no label at a position.

        Raises:
            ValueError: they have not the same number of positions.
        """
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        if len(a) != len(b):
            raise ValueError(f"{len(a)} positions meet {len(b)}")
        if a.shape[1] == b.shape[1] == 1 and a.all() and b.all():
            self._pending.append((a[:, 0], b[:, 0]))
            return
        a, b = self.resolve(a), self.resolve(b)
        bare_a, bare_b = ~_any_label(a), ~_any_label(b)
        if (bare_a & ~bare_b).any():
            self.freeze(b[bare_a], reason)
        if (bare_b & ~bare_a).any():
            self.freeze(a[bare_b], reason)
        both = ~(bare_a | bare_b)
        self._equate_sets(a[both], b[both])

    def _equate_sets(self, a: LabelArray, b: LabelArray) -> None:
        """Equate resolved, non-empty sets, row by row; rows with equally large sets are solved at once."""
        differ = ~_same_sets(a, b)
        a, b = _left(a[differ]), _left(b[differ])
        sizes = _set_sizes(a) << 16 | _set_sizes(b)
        for both in np.unique(sizes).tolist():
            rows = sizes == both
            size_a, size_b = both >> 16, both & 0xFFFF
            small, large = sorted((a[rows, :size_a], b[rows, :size_b]), key=lambda sets: sets.shape[1])
            if large.shape[1] == 1:
                self._pending.append((small[:, 0], large[:, 0]))
            elif small.shape[1] == 1:
                self._substitute(small[:, 0], large)
            elif size_a == size_b:
                for column, partner in _best_columns(small, large):
                    self._pending.append((small[:, column], large[:, partner]))
            else:
                self._merge_rows(np.concatenate([small, large], axis=1))

    def _substitute(self, plain: LabelArray, sets: LabelArray) -> None:
        """Make each plain label the product that it meets; where it meets several, equate those."""
        self.flush()
        plain, rows = self.find(plain), self.resolve(sets)
        # A label that is a product by now, or part of one of these, can't become this product as well.
        clash = (self._product[plain] >= 0) | np.isin(rows, plain).any(axis=1)
        if rows.shape[1] > MAX_FACTORS:
            clash[:] = True
        if clash.any():
            self._merge_rows(np.concatenate([self.resolve(plain[clash, None]), rows[clash]], axis=1))
        plain, rows = plain[~clash], rows[~clash]
        if len(plain) == 0:
            return
        unique, first, back = np.unique(plain, return_index=True, return_inverse=True)
        self._expand(unique, rows[first])
        again = first[back] != np.arange(len(plain))
        self._equate_sets(rows[again], rows[first[back[again]]])

    def _expand(self, roots: LabelArray, rows: LabelArray) -> None:
        """Make each root the product of the labels in its row."""
        start, end = self._product_count, self._product_count + len(rows)
        while end > len(self._factors):  # doubled, so that many small additions cost no more than a large one
            self._factors = np.concatenate([self._factors, np.zeros_like(self._factors)])
        self._factors[start:end, : rows.shape[1]] = rows
        self._product[roots] = np.arange(start, end, dtype=np.int32)
        self._product_count = end
        for root in roots[self._reason[roots] != _NO_REASON]:
            self._mark(self.resolve(np.array([[root]], np.int32)).ravel(), int(self._reason[root]))

    def _merge_rows(self, rows: LabelArray) -> None:
        """Make all labels of each row one label (coarse, and always consistent)."""
        first = np.where(rows > 0, rows, np.iinfo(np.int32).max).min(axis=1)
        for column in rows.T:
            present = column > 0
            self._pending.append((first[present], column[present]))

    # --- products -------------------------------------------------------------------------------------------

    def separate(self, joint: LabelArray, own: tuple[int, ...]) -> tuple[LabelArray, LabelArray]:
        """Split a joint array into the labels of some of its axes and those of the rest.

        A column that varies along one side only belongs to that side. Any other label, at ``(i, j)``, becomes
        the product of a label of ``i`` and a label of ``j``.

        Args:
            joint: int32 ``[d1, ..., dm, k]``.
            own: the axes to set apart.

        Returns:
            the labels over the axes ``own``, and those over the other axes, each ``[..., k']``.
        """
        self.flush()
        joint = self.resolve(joint)
        rest = tuple(axis for axis in range(joint.ndim - 1) if axis not in own)
        own_shape = tuple(joint.shape[axis] for axis in own)
        rest_shape = tuple(joint.shape[axis] for axis in rest)
        table = joint.transpose(*own, *rest, joint.ndim - 1)
        table = table.reshape(int(np.prod(own_shape)), int(np.prod(rest_shape)), joint.shape[-1])
        own_columns, rest_columns = [], []
        for column in np.moveaxis(by_axis(table), -1, 0):
            if (column == column[:, :1]).all():
                own_columns.append(column[:, 0])
            elif (column == column[:1]).all():
                rest_columns.append(column[0])
            else:
                outer, inner = self.fresh(table.shape[0]), self.fresh(table.shape[1])
                own_columns.append(outer[:, 0])
                rest_columns.append(inner[:, 0])
                product = np.stack(np.broadcast_arrays(outer, inner.T), axis=-1).reshape(-1, 2)
                self.equate(
                    column.reshape(-1, 1), product, "positions without a channel share an axis with channels"
                )
        self.flush()
        return (
            self.resolve(_columns(own_columns, table.shape[0])).reshape(*own_shape, -1),
            self.resolve(_columns(rest_columns, table.shape[1])).reshape(*rest_shape, -1),
        )

    # --- solving --------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Solve all recorded equalities: connected components over the labels that they name."""
        while self._pending:
            a = self.find(np.concatenate([pair[0] for pair in self._pending]))
            b = self.find(np.concatenate([pair[1] for pair in self._pending]))
            self._pending.clear()
            differ = a != b
            if differ.any():
                self._union(a[differ], b[differ])

    def _union(self, a: LabelArray, b: LabelArray) -> None:
        roots, back = np.unique(np.concatenate([a, b]), return_inverse=True)
        count, component = _components(back[: len(a)], back[len(a) :], len(roots))
        is_product = self._product[roots] >= 0
        # A product leads its component, so that plain labels become that product.
        leader = np.full(count, _NO_REASON, dtype=np.int32)
        np.minimum.at(leader, component[is_product], roots[is_product])
        by_product = leader != _NO_REASON
        plain = ~by_product[component]
        np.minimum.at(leader, component[plain], roots[plain])
        leaders = leader[component]
        reason = np.full(count, _NO_REASON, dtype=np.int32)
        np.minimum.at(reason, component, self._reason[roots])

        rivals = is_product & (roots != leaders)
        rival_sets = self.resolve(roots[rivals, None]), self.resolve(leaders[rivals, None])
        joining = ~is_product & by_product[component]
        self._parent[roots] = leaders
        self._reason[leader] = np.minimum(self._reason[leader], reason)
        if joining.any():
            self._break_cycles()
        for root in leader[by_product & (reason != _NO_REASON)]:
            self._mark(self.resolve(np.array([[root]], np.int32)).ravel(), int(self._reason[root]))
        self._equate_sets(*rival_sets)

    def _break_cycles(self) -> None:
        """Make one label of every product that holds itself, also by way of others, and of their factors."""
        labels = np.arange(self._count, dtype=np.int32)
        products = labels[(self._product[: self._count] >= 0) & (self._parent[: self._count] == labels)]
        factors = self.find(self._factors[self._product[products]])
        outer, place = np.nonzero(self._product[factors] >= 0)
        if not len(outer):
            return
        inner = np.searchsorted(products, factors[outer, place])
        graph = scipy.sparse.coo_array(
            (np.ones(len(outer), bool), (outer, inner)), shape=(len(products),) * 2
        )
        _, component = scipy.sparse.csgraph.connected_components(graph, connection="strong")
        cyclic = np.bincount(component)[component] > 1
        cyclic[outer[outer == inner]] = True
        for number in np.unique(component[cyclic]):
            same = component == number
            self._product[products[same]] = -1
            one = np.unique(np.concatenate([products[same], factors[same].ravel()]))
            self._merge_rows(one[one > 0][None])

    def find(self, labels: LabelArray) -> LabelArray:
        """Return the representative of every label, same shape."""
        roots = self._parent[labels]
        while True:
            above = self._parent[roots]
            if (above == roots).all():
                return roots
            roots = above

    def resolve(self, labels: LabelArray) -> LabelArray:
        """Return the sets with every label replaced by what it stands for: plain roots, no duplicates."""
        sets = self.find(labels)
        while self._product_count and (expanded := self._product[sets] >= 0).any():
            columns = []
            for column, is_product in zip(
                np.moveaxis(sets, -1, 0), np.moveaxis(expanded, -1, 0), strict=True
            ):
                if not is_product.any():
                    columns.append(column[..., None])
                    continue
                factors = self._factors[self._product[column[is_product]]]
                factors = factors[:, : int(np.flatnonzero(factors.any(axis=0))[-1]) + 1]
                wide = np.zeros((*column.shape, factors.shape[1]), dtype=np.int32)
                wide[..., 0] = column
                wide[is_product] = factors
                columns.append(wide)
            sets = _compact(self.find(np.concatenate(columns, axis=-1)))
        return _compact(sets) if sets.shape[-1] > 1 else sets

    def table(self) -> LabelArray:
        """Return what every label stands for, int32 ``[count, k]``, for `looked_up`; until the next fact."""
        return self.resolve(np.arange(self._count, dtype=np.int32)[:, None])

    def frozen_reason(self, roots: LabelArray) -> list[str | None]:
        """Return why each of the resolved labels is frozen, None where it is not."""
        return [None if code == _NO_REASON else self.reasons[code] for code in self._reason[roots].tolist()]

    def reason_codes(self, roots: LabelArray) -> LabelArray:
        """Return a number for the reason of each resolved label, one and the same where it is not frozen."""
        return np.asarray(self._reason[roots])

    def is_frozen(self, roots: LabelArray) -> npt.NDArray[np.bool_]:
        """Return which of the resolved labels are frozen, same shape."""
        return np.asarray(self._reason[roots] != _NO_REASON)

    @property
    def count(self) -> int:
        """Number of labels ever made, label 0 included."""
        return self._count


def looked_up(table: LabelArray, labels: LabelArray) -> LabelArray:
    """Return what `Labels.resolve` would, by a table of all labels: far faster for many small arrays."""
    if labels.shape[-1] > 1:
        sets = [table[labels[..., column]] for column in range(labels.shape[-1])]
        return _compact(np.concatenate(sets, axis=-1))
    resolved = table[labels[..., 0]]
    if table.shape[1] == 1:
        return resolved
    used = [column for column in range(table.shape[1]) if resolved[..., column].any()]
    return resolved[..., used or [0]]


def by_axis(sets: LabelArray) -> LabelArray:
    """Order the labels of each set so that those of one axis share a column, int32 ``[d1, ..., dm, k]``.

    Products of several parts of an axis may hold their factors in different orders. A label belongs to an
    axis along which it has a single place; where there are several such axes, the order that leaves most
    columns constant along most axes is taken.
    """
    if sets.shape[-1] == 1 or sets.ndim == 2 or _unsettled(sets) == 0:
        return sets
    labels, place = np.unique(sets, return_inverse=True)
    place = place.reshape(sets.shape)
    single = np.zeros((sets.ndim - 1, len(labels)), dtype=np.bool_)
    for axis in range(sets.ndim - 1):
        along = np.arange(sets.shape[axis]).reshape([-1] + [1] * (sets.ndim - 1 - axis))
        first, last = np.full(len(labels), sets.shape[axis]), np.full(len(labels), -1)
        np.minimum.at(first, place, np.broadcast_to(along, sets.shape))
        np.maximum.at(last, place, np.broadcast_to(along, sets.shape))
        single[axis] = first == last
    choices = [sets]
    for owner in (single.argmax(axis=0), sets.ndim - single[::-1].argmax(axis=0)):
        owner = np.where(labels == 0, sets.ndim + 1, owner)
        order = np.argsort(owner[place], axis=-1, kind="stable")
        choices.append(np.take_along_axis(sets, order, axis=-1))
    return min(choices, key=_unsettled)


def _unsettled(sets: LabelArray) -> int:
    """Return along how many axes too many the columns of a joint array vary."""
    count = 0
    for column in np.moveaxis(sets, -1, 0):
        varies = [bool((column != np.take(column, [0], axis=axis)).any()) for axis in range(column.ndim)]
        count += max(0, sum(varies) - 1)
    return count


def _columns(columns: list[LabelArray], count: int) -> LabelArray:
    return np.stack(columns, axis=-1) if columns else np.zeros((count, 1), dtype=np.int32)


def _compact(sets: LabelArray) -> LabelArray:
    """Drop labels that stand twice in a set, then columns without labels; at least one column stays."""
    columns = [sets[..., column] for column in range(sets.shape[-1])]
    for number, column in enumerate(columns[1:], 1):
        twice = np.logical_or.reduce([earlier == column for earlier in columns[:number]]) & (column > 0)
        if twice.any():
            columns[number] = np.where(twice, 0, column)
    used = [column for column in columns if column.any()] or columns[:1]
    return np.stack(used, axis=-1)


def _any_label(sets: LabelArray) -> npt.NDArray[np.bool_]:
    """Return bool ``[rows]``: which sets hold labels (numpy is slow along short axes)."""
    return np.asarray(np.logical_or.reduce([column > 0 for column in sets.T]))


def _set_sizes(sets: LabelArray) -> npt.NDArray[np.int64]:
    """Return how many labels each row holds."""
    return np.asarray(np.add.reduce([(column > 0).astype(np.int64) for column in sets.T]))


def _components(a: npt.NDArray[np.intp], b: npt.NDArray[np.intp], count: int) -> tuple[int, LabelArray]:
    """Return the number of connected components of ``count`` nodes, and which one each node is in.

    Args:
        a: one end of each edge, nodes by number; every node has an edge.
        b: the other ends.
        count: of nodes.
    """
    if count == 2 * len(a):  # no node has two edges
        component = np.empty(count, dtype=np.int32)
        component[a] = component[b] = np.arange(len(a), dtype=np.int32)
        return len(a), component
    edges = scipy.sparse.coo_array((np.ones(len(a), bool), (a, b)), shape=(count, count))
    found: tuple[int, LabelArray] = scipy.sparse.csgraph.connected_components(edges, directed=False)
    return found


def _left(sets: LabelArray) -> LabelArray:
    """Move the labels of each row before its empty places."""
    if sets.shape[1] == 1 or sets.all():
        return sets
    order = np.argsort(sets == 0, axis=1, kind="stable")
    return np.take_along_axis(sets, order, axis=1)


def _same_sets(a: LabelArray, b: LabelArray) -> npt.NDArray[np.bool_]:
    width = max(a.shape[1], b.shape[1])
    if width == 1:
        return np.asarray(a[:, 0] == b[:, 0])
    padded = [np.sort(np.pad(sets, ((0, 0), (0, width - sets.shape[1]))), axis=1) for sets in (a, b)]
    return np.asarray((padded[0] == padded[1]).all(axis=1))


def _best_columns(a: LabelArray, b: LabelArray) -> list[tuple[int, int]]:
    """Pair the columns so that the fewest different labels meet: heads with heads, offsets with offsets."""
    width = a.shape[1]
    meetings = np.array(
        [
            [len(np.unique(a[:, i].astype(np.int64) << 32 | b[:, j])) for j in range(width)]
            for i in range(width)
        ]
    )
    best = min(permutations(range(width)), key=lambda order: sum(meetings[i, j] for i, j in enumerate(order)))
    return list(enumerate(best))
