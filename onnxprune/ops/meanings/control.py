"""Control flow: If, Loop, Scan. Bodies run as the graph around them does."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.ops.meanings.base import NoMeaning, Run, Static, meaning, torch_dtype


@meaning("If", host=(0,), folds=False)
def branch(node: Static) -> Run:
    """Gives the outputs of one of two bodies"""
    then_branch, else_branch = node.body("then_branch"), node.body("else_branch")
    return lambda condition: then_branch() if bool(condition) else else_branch()


@meaning("Loop", host=(0, 1), folds=False)
def loop(node: Static) -> Run:
    """Repeats state, parts = body(state); gives the last state, and all parts stacked"""
    body, count = node.body("body"), len(node.node.inputs) - 2
    results_of = node.node.outputs[count:]

    def run(trips: Tensor | None, condition: Tensor | None, *initial: Any) -> tuple[Any, ...]:
        state = list(initial)
        parts: list[list[Tensor]] = [[] for _ in range(len(node.node.outputs) - count)]
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
        return (*state, *(_stacked(*one) for one in zip(parts, [0] * len(parts), results_of, strict=True)))

    return run


def _stacked(parts: list[Tensor], axis: int, value: ir.Value) -> Tensor:
    """Return parts along a new axis; without any, nothing in the shape that the model declares."""
    if parts:
        return torch.stack(parts, dim=axis)
    if value.shape is None or value.dtype is None:
        raise NoMeaning("a body that never runs, whose results have no declared shape")
    sizes = [size if isinstance(size, int) else 0 for size in value.shape]
    sizes[axis] = 0
    return torch.zeros(sizes, dtype=torch_dtype(value.dtype))


@meaning("Scan", folds=False)
def scan(node: Static) -> Run:
    """Repeats state, parts = body(state, slice) for all slices; gives the last state, and stacked parts"""
    if node.version < 9:
        return _batched_scan(node)
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
            _stacked(found[::-1] if turned else found, axis, value)
            for found, axis, turned, value in zip(
                parts, out_axes or (), out_turns or (), node.node.outputs[count:], strict=True
            )
        ]
        return (*state, *stacked)

    return run


def _batched_scan(node: Static) -> Run:
    """Return the Scan of opset 8: as later, for each sample of a batch, over the first steps of each."""
    body, taken = node.body("body"), node.int("num_scan_inputs")
    turns = node.ints("directions", [0] * taken) or []
    count = len(node.node.inputs) - 1 - taken
    made = len(node.node.outputs) - count

    def run(lengths: Tensor | None, *inputs: Tensor) -> tuple[Tensor, ...]:
        states: list[list[Tensor]] = [[] for _ in range(count)]
        stacked: list[list[Tensor]] = [[] for _ in range(made)]
        most = inputs[count].shape[1]
        for sample in range(len(inputs[0])):
            state = [x[sample] for x in inputs[:count]]
            steps = most if lengths is None else int(lengths[sample])
            parts: list[list[Tensor]] = [[] for _ in range(made)]
            for step in range(steps):
                places = [steps - 1 - step if turned else step for turned in turns]
                slices = [x[sample, place] for x, place in zip(inputs[count:], places, strict=True)]
                results = body(*state, *slices)
                state = list(results[:count])
                for found, part in zip(parts, results[count:], strict=True):
                    found.append(part)
            for found, last in zip(states, state, strict=True):
                found.append(last)
            for found, own in zip(stacked, parts, strict=True):
                padding = [torch.zeros_like(own[0])] * (most - steps)
                found.append(torch.stack([*own, *padding]))
        return tuple(torch.stack(found) for found in (*states, *stacked))

    return run
