"""Pruning and tuning in rounds: cuts that are real each time, lottery tickets, and resumed runs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from learners import load, same_weights, samples, tuning, weights_of, zeros_are_the_masks

import onnxprune
from onnxprune.data import Dataset
from onnxprune.errors import UsageError
from onnxprune.gradual.run import Learning
from onnxprune.rewrite.mask import replace_weights


def in_rounds(model: ir.Model, data: Any, **options: Any) -> onnxprune.PruneResult:
    usual = {"rounds": 3, "validation": None, "settings": tuning(6)}
    return onnxprune.prune_gradually(model, data=data, **{**usual, **options})


class Starts:
    """Keeps what each round of tuning starts from, and its masks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: list[ir.Model] = []
        self.masks: list[Any] = []
        tune = Learning.tune

        def recording(learning: Learning, model: ir.Model, masks: Any, *more: Any, **options: Any) -> Any:
            self.models.append(model)
            self.masks.append(masks)
            return tune(learning, model, masks, *more, **options)

        monkeypatch.setattr(Learning, "tune", recording)


def earlier(model: ir.Model, seed: int = 3) -> ir.Model:
    """The same graph with other weights."""
    random, copy = np.random.default_rng(seed), model.clone()
    floats = {n: a for n, a in weights_of(model).items() if a.dtype == np.float32 and a.size > 1}
    replace_weights(copy, {n: random.standard_normal(a.shape).astype(a.dtype) for n, a in floats.items()})
    return copy


@pytest.mark.parametrize("pattern", ["unstructured", "block:2x2", "1:4"])
def test_each_round_prunes_more_and_tunes_what_is_left(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    amount = {} if ":" in pattern and "block" not in pattern else {"amount": 0.875}
    result = in_rounds(load("mlp"), samples("mlp"), pattern=pattern, schedule="geometric", **amount)

    shares = [
        1 - sum(m.kept for m in each.values()) / sum(m.size for m in each.values()) for each in starts.masks
    ]
    wanted = [0.25, 0.5, 0.75] if pattern == "1:4" else [0.5, 0.75, 0.875]
    assert shares == pytest.approx(wanted, abs=0.02)
    for before, after in pairwise(starts.masks):
        for name, mask in before.items():
            assert not (after[name].unpack() & ~mask.unpack()).any()
    zeros_are_the_masks(result.model, result.plan.masks)
    assert len(result.report.sections["rounds"]) == len(wanted)


def test_a_lottery_ticket_starts_each_round_from_the_earlier_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(monkeypatch)
    model = load("mlp")
    old = earlier(model)
    result = in_rounds(model, samples("mlp"), pattern="unstructured", amount=0.8, rewind=old)

    before = weights_of(old)
    for start, masks in zip(starts.models, starts.masks, strict=True):
        for name, array in weights_of(start).items():
            kept = masks[name].unpack() if name in masks else np.ones(array.shape, np.bool_)
            assert np.array_equal(array, np.where(kept, before[name], 0)), name
    zeros_are_the_masks(result.model, result.plan.masks)
    dense = weights_of(model)
    first = starts.masks[0]
    for name, mask in first.items():  # by magnitude in the trained network, not in the earlier one
        magnitudes = np.abs(dense[name])
        assert magnitudes[mask.unpack()].min() >= magnitudes[~mask.unpack()].max()


def test_a_random_ticket_of_the_same_size_has_as_many_zeros_in_each_layer() -> None:
    model, data = load("mlp"), samples("mlp")
    options = {"pattern": "unstructured", "amount": 0.8, "rewind": earlier(model)}
    found, random = in_rounds(model, data, **options), in_rounds(model, data, score="random", **options)

    assert {n: m.kept for n, m in found.plan.masks.items()} == {
        n: m.kept for n, m in random.plan.masks.items()
    }
    assert any((m.bits != random.plan.masks[n].bits).any() for n, m in found.plan.masks.items())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("residual_net", {"pattern": "channels", "target_macs": 0.4, "align": 1}),
        ("attention", {"pattern": "heads", "amount": 0.5}),
        ("attention", {"pattern": "channels", "target_params": 0.5}),
        ("attention", {"pattern": "head_dim", "amount": 0.5, "align": 1}),
    ],
)
def test_shapes_really_shrink_in_each_round(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = Starts(monkeypatch)
    model = load(name)
    result = in_rounds(model, samples(name, labels=False), **options)

    sizes = [sum(array.size for array in weights_of(start).values()) for start in starts.models]
    assert len(sizes) > 1
    assert all(a > b for a, b in pairwise(sizes))
    proofs = [check for check in result.report.checks if check.name.startswith("cut equals")]
    assert len(proofs) == len(sizes)
    assert all(check.passed for check in proofs)
    onnxprune.save(model, tmp_path / "model.onnx")
    report = onnxprune.save_pruned(
        result, tmp_path / "small.onnx", against=tmp_path / "model.onnx", plan_folder=tmp_path / "plan"
    )
    assert report.passed
    again = onnxprune.apply_plan(model, onnxprune.load_plan(tmp_path / "plan"))
    assert sum(array.size for array in weights_of(again.model).values()) == sizes[-1]


def test_layers_go_round_by_round_and_the_plan_of_the_whole_applies_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    starts = Starts(monkeypatch)
    model = stack(4)
    data = Dataset.from_arrays({"x": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)})
    result = in_rounds(model, data, pattern="layers", amount=0.75, score="l2", floor=0, schedule="linear")

    depths = [sum(node.op_type == "Add" for node in start.graph) for start in starts.models]
    assert depths == [3, 2, 1]
    (group,) = result.plan.groups
    assert (group.size, len(group.removed)) == (4, 3)
    onnxprune.save(model, tmp_path / "model.onnx")
    report = onnxprune.save_pruned(
        result, tmp_path / "small.onnx", against=tmp_path / "model.onnx", plan_folder=tmp_path / "plan"
    )
    assert report.passed
    again = onnxprune.apply_plan(model, onnxprune.load_plan(tmp_path / "plan"))
    assert weights_of(again.model).keys() == weights_of(result.model).keys()


def test_layers_go_in_one_round_too() -> None:
    data = {"x": np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)}
    result = in_rounds(
        stack(4), Dataset.from_arrays(data), pattern="layers", amount=0.5, score="l2", floor=0, rounds=1
    )
    (group,) = result.plan.groups
    assert len(group.removed) == 2
    assert result.report.sections["tuning"]["steps"] == 6


def stack(depth: int) -> ir.Model:
    """Residual branches of two linear layers each."""
    lines, value = [], "x"
    for number in range(depth):
        lines += [
            f"h{number} = MatMul({value}, up{number})",
            f"r{number} = Relu(h{number})",
            f"f{number} = MatMul(r{number}, down{number})",
            f"s{number} = Add({value}, f{number})",
        ]
        value = f"s{number}"
    weights = ", ".join(f"float[8, 12] up{n}, float[12, 8] down{n}" for n in range(depth))
    text = (
        '<ir_version: 9, opset_import: ["" : 17]> net (float[N, 8] x) => (float[N, 3] y) '
        f"<{weights}, float[8, 3] out> {{ {' '.join(lines)} y = MatMul({value}, out) }}"
    )
    return filled(text)


def filled(text: str) -> ir.Model:
    import onnx

    random, proto = np.random.default_rng(0), onnx.parser.parse_model(text)
    for info in proto.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        array = (random.standard_normal(shape) / 3).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, info.name))
    del proto.graph.value_info[:]
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    "options", [{"pattern": "unstructured", "amount": 0.8}, {"pattern": "channels", "amount": 0.5}]
)
@pytest.mark.parametrize("killed_at", [(1, 3), (2, 1), (3, 5)])
def test_rounds_that_were_killed_go_on_bit_for_bit(
    options: dict[str, Any], killed_at: tuple[int, int], tmp_path: Path
) -> None:
    model, data = load("mlp"), samples("mlp")
    every = {"settings": tuning(6, checkpoint_every=2), **options}
    whole = in_rounds(model, data, **every)
    seen = [0]

    def kill(standing: Any) -> None:
        seen[0] += standing.step == 1
        if (seen[0], standing.step) == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_rounds(model, data, checkpoint=tmp_path / "run", told=kill, **every)
    resumed = in_rounds(model, data, checkpoint=tmp_path / "run", resume=True, **every)
    assert same_weights(whole.model, resumed.model)
    assert resumed.report.sections["rounds"] == whole.report.sections["rounds"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "channels", "amount": 0.5, "rewind": "mlp"}, "changes shapes"),
        ({"pattern": "unstructured", "amount": 0.5, "rewind": "residual_net"}, "another graph"),
        ({"pattern": "unstructured", "amount": 0.5, "score": "movement"}, "watches one run"),
        ({"pattern": "dead"}, "nothing to tune"),
    ],
)
def test_what_makes_no_sense_in_rounds_is_refused(options: dict[str, Any], message: str) -> None:
    if "rewind" in options:
        options = {**options, "rewind": load(options["rewind"])}
    with pytest.raises(UsageError, match=message) as caught:
        in_rounds(load("mlp"), samples("mlp"), **options)
    assert "\n" not in str(caught.value)
