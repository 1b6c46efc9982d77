"""The law of labels: whatever is removed, recorded equalities hold and frozen positions stay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.ops.labels import LabelArray, Labels, looked_up


def removed(labels: Labels, sets: LabelArray, gone: np.ndarray) -> np.ndarray:
    return gone[labels.resolve(sets)].any(axis=-1)


def leaves(labels: Labels) -> np.ndarray:
    """Plain labels that may be removed."""
    labels.flush()
    every = labels.resolve(np.arange(1, labels.count, dtype=np.int32)[:, None])
    plain = np.unique(every[every > 0])
    return np.array(
        [label for label in plain if labels.frozen_reason(np.array([label]))[0] is None], dtype=np.int32
    )


class Story:
    """Random facts about labels, and what they promise."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.labels = Labels()
        self.pool: list[LabelArray] = [self.labels.fresh(int(size)) for size in self.random.integers(2, 7, 4)]
        self.equal: list[tuple[LabelArray, LabelArray]] = []
        self.frozen: list[LabelArray] = []
        self.products: list[tuple[LabelArray, LabelArray, LabelArray]] = []

    def pick(self, size: int) -> LabelArray:
        fitting = [array for array in self.pool if len(array) == size]
        if fitting and self.random.random() < 0.8:
            return fitting[self.random.integers(len(fitting))]
        self.pool.append(self.labels.fresh(size))
        return self.pool[-1]

    def step(self) -> None:
        size = int(self.random.choice([2, 3, 4, 6, 6, 6]))
        match self.random.integers(5):
            case 0:
                a, b = self.pick(size), self.pick(size)
                self.labels.equate(a, b, "meets nothing")
                self.equal.append((a, b))
            case 1:
                rows = 2 if size % 2 == 0 else size
                joint = self.pick(size).reshape(rows, size // rows, -1)
                own, rest = self.labels.separate(joint, (0,))
                self.products.append((joint, own, rest))
                self.pool += [own, rest]
            case 2:
                a, b = self.pick(2), self.pick(3)
                grid = np.concatenate(
                    [
                        np.broadcast_to(a[:, None], (2, 3, a.shape[1])),
                        np.broadcast_to(b[None], (2, 3, b.shape[1])),
                    ],
                    -1,
                ).reshape(6, -1)
                self.pool.append(np.ascontiguousarray(grid))
            case 3:
                array = self.pick(size)
                self.pool.append(self.random.permutation(array))
            case _:
                if self.random.random() < 0.3:
                    array = self.pick(size)[: size // 2]
                    self.labels.freeze(array, "frozen by the test")
                    self.frozen.append(array)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_every_choice_of_leaves_keeps_all_facts(seed: int, steps: int) -> None:
    story = Story(seed)
    for _ in range(steps):
        story.step()
    choices = leaves(story.labels)
    for share in (0.1, 0.5):
        gone = np.zeros(story.labels.count, dtype=bool)
        gone[choices[story.random.random(len(choices)) < share]] = True
        for a, b in story.equal:
            np.testing.assert_array_equal(removed(story.labels, a, gone), removed(story.labels, b, gone))
        for array in story.frozen:
            assert not removed(story.labels, array, gone).any()
        for joint, own, rest in story.products:
            product = removed(story.labels, own, gone)[:, None] | removed(story.labels, rest, gone)[None]
            np.testing.assert_array_equal(removed(story.labels, joint, gone), product)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_a_table_says_what_resolving_says(seed: int, steps: int) -> None:
    story = Story(seed)
    for _ in range(steps):
        story.step()
    story.labels.flush()
    table = story.labels.table()
    for array in (*story.pool, *(joint for joint, _, _ in story.products)):
        np.testing.assert_array_equal(looked_up(table, array), story.labels.resolve(array))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=12))
def test_equal_labels_have_one_root(pairs: list[tuple[int, int]]) -> None:
    labels = Labels()
    labels.fresh(20)
    a, b = (np.array(side, np.int32)[:, None] for side in zip(*pairs, strict=True))
    labels.equate(a, b, "")
    labels.flush()
    groups = [{number} for number in range(1, 21)]
    for one, other in pairs:
        joined = next(group for group in groups if one in group) | next(g for g in groups if other in g)
        groups = [group for group in groups if not group & joined] + [joined]
    for group in groups:
        assert set(labels.find(np.array(sorted(group), np.int32)).tolist()) == {min(group)}


def test_the_law_can_fail() -> None:
    labels = Labels()
    a, b = labels.fresh(3), labels.fresh(3)
    gone = np.zeros(labels.count, dtype=bool)
    gone[a[0, 0]] = True
    assert not np.array_equal(removed(labels, a, gone), removed(labels, b, gone))  # nothing was equated


def test_a_split_axis_becomes_heads_and_offsets() -> None:
    labels = Labels()
    axis = labels.fresh(12)
    heads, offsets = labels.separate(axis.reshape(3, 4, 1), (0,))
    resolved = labels.resolve(axis).reshape(3, 4, -1)
    assert heads.shape == (3, 1)
    assert offsets.shape == (4, 1)
    for head in range(3):
        for offset in range(4):
            assert set(resolved[head, offset]) == {heads[head, 0], offsets[offset, 0]}


def test_a_bias_becomes_the_product_that_it_meets() -> None:
    labels = Labels()
    axis, bias = labels.fresh(6), labels.fresh(6)
    labels.separate(axis.reshape(2, 3, 1), (0,))
    labels.equate(axis, bias, "")
    labels.flush()
    np.testing.assert_array_equal(np.sort(labels.resolve(axis)), np.sort(labels.resolve(bias)))


def test_equal_products_share_their_factors() -> None:
    labels = Labels()
    q, k = labels.fresh(6), labels.fresh(6)
    heads_q, offsets_q = labels.separate(q.reshape(2, 3, 1), (0,))
    heads_k, offsets_k = labels.separate(k.reshape(2, 3, 1), (0,))
    labels.equate(q, k, "")
    labels.flush()
    np.testing.assert_array_equal(labels.resolve(heads_q), labels.resolve(heads_k))
    np.testing.assert_array_equal(labels.resolve(offsets_q), labels.resolve(offsets_k))


def test_a_label_inside_its_own_product_is_merged_and_not_endless() -> None:
    labels = Labels()
    axis = labels.fresh(4)
    heads, _ = labels.separate(axis.reshape(2, 2, 1), (0,))
    labels.equate(axis[:2], heads, "")
    labels.flush()
    assert labels.resolve(axis).shape[0] == 4


def test_products_that_hold_each_other_are_merged_and_not_endless() -> None:
    labels = Labels()
    axes = [labels.fresh(4) for _ in range(3)]
    heads = [labels.separate(axis.reshape(2, 2, 1), (0,))[0] for axis in axes]
    for place, inner in enumerate(heads):  # all at once: each is in the next, and the last in the first
        labels.equate(inner[:1], axes[(place + 1) % 3][:1], "")
    labels.flush()
    assert len({int(root) for axis in axes for root in labels.resolve(axis[:1]).ravel() if root}) == 1
    labels.freeze(axes[0][:1], "it stays")
    assert all(labels.is_frozen(labels.resolve(axis[:1])).any() for axis in axes)


def test_freezing_names_the_first_reason() -> None:
    labels = Labels()
    a, b = labels.fresh(2), labels.fresh(2)
    labels.freeze(a, "first")
    labels.freeze(b, "second")
    labels.equate(a, b, "")
    labels.flush()
    assert labels.frozen_reason(labels.resolve(b).ravel()) == ["first", "first"]


def test_labels_that_meet_no_label_are_frozen() -> None:
    labels = Labels()
    a = labels.fresh(2)
    labels.equate(a, np.array([[0], [0]], np.int32), "meets an untracked axis")
    assert labels.frozen_reason(labels.resolve(a).ravel()) == ["meets an untracked axis"] * 2


@pytest.mark.parametrize("count", [3, 5000])
def test_fresh_labels_are_all_different(count: int) -> None:
    labels = Labels()
    assert len(np.unique(np.concatenate([labels.fresh(count), labels.fresh(count)]))) == 2 * count
