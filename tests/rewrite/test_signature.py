"""Signatures: equal exactly where the models that are cut out are the same but for their weights."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from cutting import graph, some_channels
from generated import generated_model
from small_models import attention, concat_net, depthwise_net, residual_net

from onnxprune.analyze import Analysis, analyze
from onnxprune.feeds import random_feeds
from onnxprune.measure.part_times import observe_values
from onnxprune.parts import Part, split_into_parts
from onnxprune.rewrite.part import cut_part
from onnxprune.rewrite.signature import Signer


def written(model: ir.Model) -> str:
    """All of a model but names and the contents of weights."""
    numbers: dict[ir.Value, str] = {}
    lines = []
    for value in model.graph.inputs:
        numbers[value] = f"i{len(numbers)}"
        sizes = [size if isinstance(size, int) else None for size in value.shape or ()]
        lines.append(f"{value.dtype} {sizes}")
    for node in model.graph:
        read = []
        for value in node.inputs:
            text = "-" if value is None else numbers.setdefault(value, f"w{len(numbers)}")
            tensor = None if value is None else value.const_value
            if tensor is not None:
                text += f" {tensor.dtype} {tuple(tensor.shape)}"
                text += f" {tensor.numpy().tolist()}" if tensor.dtype.is_integer() else ""
            read.append(text)
        for value in node.outputs:
            numbers[value] = f"n{len(numbers)}"
        attributes = sorted((name, attribute.value) for name, attribute in node.attributes.items())
        lines.append(f"{node.op_type} {read} {attributes}")
    return "\n".join([*lines, *(numbers[value] for value in model.graph.outputs)])


class Signed:
    """The parts of a model, and what they are at a cut."""

    def __init__(self, model: ir.Model) -> None:
        self.analysis = analyze(model)
        self.parts = split_into_parts(self.analysis.model.graph, self.analysis.channels)
        feeds = random_feeds(self.analysis.model, self.analysis.shapes.input_shapes, 0)
        names = {str(v.name) for part in self.parts for v in (*part.inputs, *part.outputs)}
        self.types, self.contents = observe_values(self.analysis.model, names, feeds)

    def at(self, part: Part, gone: np.ndarray) -> tuple[str, str]:
        """Return the signature, and the model that it stands for."""
        channels = self.analysis.channels
        signer = Signer(part, channels, types=self.types, contents=self.contents)
        return signer.sign(gone), written(cut_part(part, channels, gone, types=self.types))


def cuts(analysis: Analysis, seed: int) -> list[np.ndarray]:
    removed = [{}, *(some_channels(analysis, seed + i, share) for i, share in enumerate((0.2, 0.5, 0.5)))]
    return [analysis.removed_labels(numbers) for numbers in removed]


@pytest.mark.parametrize(
    "models",
    [
        (residual_net(), residual_net(1), residual_net(width=12)),
        (depthwise_net(), depthwise_net(width=8)),
        (attention(), attention(heads=8), attention(width=16, heads=2)),
        (concat_net(),),
        *[(generated_model(seed, depth=4), generated_model(seed + 100, depth=4)) for seed in range(8)],
    ],
)
def test_equal_signatures_are_equal_models(models):
    pairs = set()
    for model in models:
        signed = Signed(ir.from_proto(model))
        for part, gone in itertools.product(signed.parts, cuts(signed.analysis, 3)):
            if part.whole is None:
                pairs.add(signed.at(part, gone))
    by_signature = {signature for signature, _ in pairs}
    by_model = {text for _, text in pairs}
    assert len(by_signature) == len(pairs), "one signature stands for two models"
    assert len(by_model) == len(pairs), "one model has two signatures"
    assert len(pairs) > 4


def test_names_and_weights_do_not_count():
    first, second = (Signed(ir.from_proto(residual_net(seed))) for seed in (0, 1))
    for one, other in zip(first.parts, second.parts, strict=True):
        none = first.analysis.removed_labels({})
        assert first.at(one, none)[0] == second.at(other, none)[0]
    repeated = [first.at(part, none)[0] for part in first.parts]
    assert len(set(repeated)) < len(repeated), "the two blocks of the network are the same"


def test_a_smaller_model_is_the_larger_one_after_a_cut():
    """What was measured of a cut holds for the model that was made by it."""
    large, small = (Signed(ir.from_proto(depthwise_net(width=width))) for width in (16, 8))
    groups = {group.name: group.size // 2 for group in large.analysis.groups if group.frozen is None}
    removed = {name: np.arange(count, dtype=np.int32) for name, count in groups.items()}
    gone, none = large.analysis.removed_labels(removed), small.analysis.removed_labels({})
    for one, other in zip(large.parts, small.parts, strict=True):
        assert large.at(one, gone)[0] == small.at(other, none)[0]


def test_numbers_that_decide_what_is_fused_do_count():
    def signature(exponent: float) -> str:
        signed = Signed(
            graph(
                "h = MatMul(x, a_w) p = Pow(h, e) y = MatMul(p, b_w)",
                inputs="float[4,6] x",
                constants={"a_w": (6, 8), "b_w": (8, 3), "e": np.asarray(exponent, np.float32)},
            )
        )
        return signed.at(signed.parts[0], signed.analysis.removed_labels({}))[0]

    assert signature(2.0) == signature(2.0)
    assert signature(2.0) != signature(3.0)


def test_marked_ends_count():
    signed = Signed(ir.from_proto(residual_net()))
    part, none = signed.parts[1], signed.analysis.removed_labels({})
    found = {
        Signer(
            part, signed.analysis.channels, types=signed.types, contents=signed.contents, marked=marked
        ).sign(none)
        for marked in ((), [str(part.inputs[0].name)], [str(part.outputs[0].name)])
    }
    assert len(found) == 3
