"""Control flow: If, Loop, Scan. Bodies run as the graph around them does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning


@meaning("If", host=(0,), folds=False)
def branch(node: Static) -> Run:
    """outputs = those of one of two bodies"""
    then_branch, else_branch = node.body("then_branch"), node.body("else_branch")
    return lambda condition: then_branch() if bool(condition) else else_branch()


@meaning("Loop", host=(0, 1), folds=False)
def loop(node: Static) -> Run:
    """state = initial; repeat: state, parts = body(state); outputs = last state, and all parts stacked"""
    body, count = node.body("body"), len(node.node.inputs) - 2

    def run(trips: Tensor | None, condition: Tensor | None, *initial: Any) -> tuple[Any, ...]:
        state, parts = list(initial), [[] for _ in range(len(node.node.outputs) - count)]
        most = None if trips is None else int(trips)
        goes_on = condition is None or bool(condition)
        done = 0
        while goes_on and (most is None or done < most):
            again, *results = body(torch.tensor(done), torch.tensor(True), *state)
            goes_on = bool(again)
            state = results[:count]
            for found, part in zip(parts, results[count:], strict=True):
                found.append(part)
            done += 1
        return (*state, *(_stacked(found, 0, node) for found in parts))

    return run


def _stacked(parts: list[Tensor], axis: int, node: Static) -> Tensor:
    if not parts:
        raise NoMeaning(f"{node.node.op_type} without a single pass, whose results have no size")
    return torch.stack(parts, dim=axis)


@meaning("Scan", folds=False)
def scan(node: Static) -> Run:
    """state = initial; for each slice: state, parts = body(state, slice); parts are stacked"""
    if node.version < 9:
        raise NoMeaning("Scan of opset 8, with a batch of its own")
    body, taken = node.body("body"), node.int("num_scan_inputs")
    count = len(node.node.inputs) - taken
    made = len(node.node.outputs) - count
    in_axes, out_axes = node.ints("scan_input_axes", [0] * taken), node.ints("scan_output_axes", [0] * made)
    in_turns = node.ints("scan_input_directions", [0] * taken)
    out_turns = node.ints("scan_output_directions", [0] * made)

    def run(*inputs: Any) -> tuple[Any, ...]:
        state: list[Any] = list(inputs[:count])
        slices = [
            (x.flip(axis) if turned else x).unbind(axis)
            for x, axis, turned in zip(inputs[count:], in_axes or (), in_turns or (), strict=True)
        ]
        parts: list[list[Tensor]] = [[] for _ in range(made)]
        for here in zip(*slices, strict=True):
            results = body(*state, *here)
            state = list(results[:count])
            for found, part in zip(parts, results[count:], strict=True):
                found.append(part)
        stacked = [
            _stacked(found[::-1] if turned else found, axis, node)
            for found, axis, turned in zip(parts, out_axes or (), out_turns or (), strict=True)
        ]
        return (*state, *stacked)

    return run
