"""The law of cutting, on generated graphs: a cut model computes what its exact twin computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from generated import generated_model
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.analyze import Analysis, analyze
from onnxprune.cost import cost_of
from onnxprune.ops.kept import Kept
from onnxprune.prove import prove
from onnxprune.rewrite.cut import cut
from onnxprune.rewrite.twin import make_twin
from onnxprune.types import BoolArray

SHAPES = [{"x": (2, 3, 5, 5)}, {"x": (3, 3, 5, 5)}]


def random_choice(analysis: Analysis, seed: int, share: float) -> dict[str, np.ndarray]:
    """Some channels of every open group, but never all."""
    random = np.random.default_rng(seed)
    removed = {}
    for group in analysis.groups:
        if group.frozen is None:
            count = min(group.size - 1, int(random.binomial(group.size, share)))
            removed[group.name] = np.sort(random.permutation(group.size)[:count]).astype(np.int32)
    return removed


def gone_after(analysis: Analysis, seed: int, share: float) -> BoolArray:
    return analysis.removed_labels(random_choice(analysis, seed, share))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([0.2, 0.6]))
def test_a_cut_equals_its_zeroed_twin(seed: int, depth: int, share: float) -> None:
    analysis = analyze(ir.from_proto(generated_model(seed, depth)))
    gone = gone_after(analysis, seed, share)
    pruned = cut(analysis.model, analysis.channels, gone)
    twin = make_twin(analysis.model, analysis.channels, gone)
    check = prove(twin, pruned, SHAPES, tolerance=1e-4, seed=seed)
    assert check.passed, check.detail
    # shuffles of shuffles may tie all channels into one, which then has to stay
    assert any(group.frozen in (None, "a single channel is left") for group in analysis.groups)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_predicted_parameters_are_those_of_the_cut(seed: int, depth: int) -> None:
    analysis = analyze(ir.from_proto(generated_model(seed, depth)))
    gone = gone_after(analysis, seed, 0.5)
    predicted = cost_of(analysis.model.graph, analysis.channels, Kept(analysis.channels, gone))
    pruned = cut(analysis.model, analysis.channels, gone)
    weights = [value.const_value for value in pruned.graph.initializers.values()]
    assert predicted.params == sum(w.size for w in weights if w is not None and w.dtype.is_floating_point())


def test_nothing_removed_changes_nothing() -> None:
    analysis = analyze(ir.from_proto(generated_model(7, 4)))
    gone = np.zeros(analysis.channels.labels.count, dtype=np.bool_)
    pruned = cut(analysis.model, analysis.channels, gone)
    for name, value in analysis.model.graph.initializers.items():
        assert pruned.graph.initializers[name].const_value is value.const_value


@pytest.mark.parametrize("seed", range(8))
def test_the_proof_fails_when_another_channel_is_cut(seed: int) -> None:
    """The oracle can fail: a cut of one choice is no proof for the twin of another."""
    analysis = analyze(ir.from_proto(generated_model(seed, 4)))
    name = next(g.name for g in analysis.groups if g.frozen is None and g.size >= 4)
    first = analysis.removed_labels({name: np.array([0], np.int32)})
    other = analysis.removed_labels({name: np.array([1], np.int32)})
    pruned = cut(analysis.model, analysis.channels, first)
    assert not prove(
        make_twin(analysis.model, analysis.channels, other), pruned, SHAPES, tolerance=1e-4
    ).passed
    assert prove(make_twin(analysis.model, analysis.channels, first), pruned, SHAPES, tolerance=1e-4).passed


@pytest.mark.parametrize("seed", range(8))
def test_the_proof_fails_when_a_weight_is_permuted(seed: int) -> None:
    """The oracle can fail: right shapes with rows in the wrong order."""
    analysis = analyze(ir.from_proto(generated_model(seed, 4)))
    gone = gone_after(analysis, seed, 0.3)
    pruned = cut(analysis.model, analysis.channels, gone)
    twin = make_twin(analysis.model, analysis.channels, gone)
    head = pruned.graph.initializers[str(pruned.graph[-1].inputs[1].name)]  # type: ignore[union-attr]
    weights = head.const_value.numpy()  # type: ignore[union-attr]
    head.const_value = ir.tensor(np.ascontiguousarray(np.roll(weights, 1, axis=1)), name=head.name)
    assert not prove(twin, pruned, SHAPES, tolerance=1e-4).passed
