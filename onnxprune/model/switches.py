"""A copy of a model in which the way that every If takes can be set from outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxprune.model.body_shapes import branches
from onnxprune.model.names import Names
from onnxprune.model.scopes import number_of, numbered_nodes
from onnxprune.model.stored import stored_tensor

#: An If, by the number that `scopes.number_nodes` gave it, and whether its condition holds.
Decision: TypeAlias = tuple[int, bool]

#: Nested decisions that are tried in every combination; deeper ones repeat the first.
_DEEPEST = 3


def decisions(model: ir.Model) -> dict[int, tuple[Decision, ...]]:
    """Return the numbered Ifs of a model that may be set, with the decisions around each that lead there.

    Those in a Loop that ends by what it computes are left out: set from outside, it might never end.
    """
    found: dict[int, tuple[Decision, ...]] = {}
    waiting: list[tuple[ir.Graph, tuple[Decision, ...]]] = [(model.graph, ())]
    while waiting:
        graph, path = waiting.pop()
        for node in graph:
            number = number_of(node)
            if node.op_type == "If" and node.domain in ("", "ai.onnx") and number is not None:
                found[number] = path
                waiting += [
                    (branch, (*path, (number, holds)))
                    for branch, holds in zip(branches(node), (True, False), strict=True)
                ]
            elif "body" in node.attributes and (node.op_type == "Scan" or _counts(node)):
                waiting.append((node.attributes["body"].as_graph(), path))
    return found


def _counts(loop: ir.Node) -> bool:
    """Return whether a Loop runs as often as it is told: its body hands on the condition, or a constant."""
    body = loop.attributes["body"].as_graph()
    goes_on: ir.Value | None = body.outputs[0]
    while goes_on is not None and goes_on is not body.inputs[1] and stored_tensor(goes_on) is None:
        producer = goes_on.producer()
        if producer is None or producer.op_type != "Identity":
            return False
        goes_on = producer.inputs[0]
    return goes_on is not None


def combinations(paths: Mapping[int, tuple[Decision, ...]]) -> list[dict[int, bool]]:
    """Return decisions for all Ifs at once, such that every branch runs in one of them: few, not all."""
    depth = 1 + max(min(len(path), _DEEPEST - 1) for path in paths.values())
    return [
        {number: ways[len(path) % _DEEPEST] for number, path in paths.items()}
        for ways in product((True, False), repeat=depth)
    ]


def reached(forced: Mapping[int, bool], paths: Mapping[int, tuple[Decision, ...]]) -> set[Decision]:
    """Return the decisions that are taken where these are forced: the others stand in idle branches."""
    return {
        (number, holds)
        for number, holds in forced.items()
        if all(forced.get(outer) == way for outer, way in paths[number])
    }


def with_switches(model: ir.Model, numbers: Iterable[int]) -> ir.Model:
    """Return a copy whose Ifs read ``(condition and keep) or set``, with two new scalar inputs for each."""
    copy = model.clone()
    names = Names(copy.graph)
    nodes = numbered_nodes(copy)
    for number in numbers:
        node = nodes[number]
        if node.graph is None:
            raise ValueError(f"{node.name} stands in no graph")
        keep, force = (
            ir.Value(name=name, shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
            for name in _inputs(number)
        )
        copy.graph.inputs.extend((keep, force))
        kept = ir.node("And", [node.inputs[0], keep], name=names.fresh(f"switch_{number}_and"))
        chosen = ir.node("Or", [kept.outputs[0], force], name=names.fresh(f"switch_{number}_or"))
        for new in (kept, chosen):
            new.outputs[0].name = new.name
            new.outputs[0].dtype = ir.DataType.BOOL
        node.graph.insert_before(node, (kept, chosen))
        node.replace_input_with(0, chosen.outputs[0])
    return copy


def switch_feeds(numbers: Iterable[int], forced: Mapping[int, bool]) -> dict[str, np.ndarray]:
    """Return the new inputs that force some Ifs; the others are decided by their own conditions."""
    feeds = {}
    for number in numbers:
        keep, force = _inputs(number)
        feeds[keep] = np.array(number not in forced)
        feeds[force] = np.array(forced.get(number, False))
    return feeds


def _inputs(number: int) -> tuple[str, str]:
    return f"onnxprune.keep_{number}", f"onnxprune.set_{number}"
