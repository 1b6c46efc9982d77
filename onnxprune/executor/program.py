"""A graph as a list of steps: each runs one node and lets go of what nobody needs any more.

Every value of the graph, and of the bodies within it, has a slot in one list. Sizes and the arithmetic on
them stay in main memory, also where the rest is computed on an accelerator, so that no step waits for one to
be copied. Which values these are is decided here, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxprune.errors import ModelError
from onnxprune.messages import one_line, quoted
from onnxprune.model.nodes import graphs_in, nodes_in
from onnxprune.ops.meanings import FAMILIES
from onnxprune.ops.meanings.base import Array, Entry, Mode, NoMeaning, Run, Static, meaning_for
from onnxprune.ops.meanings.stored import as_torch

assert FAMILIES  # noqa: S101  importing them filed the meanings

#: Bytes of the largest result that is computed in advance, unless it is no larger than what it is made of.
_SMALL_BYTES = 1 << 16

Values = list[Any]


@dataclass(slots=True)
class Step:
    """One node.

    Attributes:
        node: for messages.
        run: the meaning.
        inputs: slots; 0 holds None.
        outputs: slots.
        frees: slots that hold nothing needed after this step.
        host: inputs that are read as numbers.
        is_host: the outputs are computed in main memory.
        moves: inputs (places in ``inputs``) that are in main memory and go where the module is.
        moves_outputs: the node makes something of sizes alone, which goes where the module is.
        bodies: subgraphs that the node runs.
    """

    node: ir.Node
    run: Run
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    frees: tuple[int, ...] = ()
    host: tuple[int, ...] = ()
    is_host: bool = False
    moves: tuple[int, ...] = ()
    moves_outputs: bool = False
    bodies: tuple[Block, ...] = ()


class Block:
    """A subgraph: its steps work on the list of values of the program that they are part of.

    Called by the meaning of the node that holds it, while that node runs.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], steps: list[Step]) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.steps = steps
        self.values: Values = []
        self.device = torch.device("cpu")
        self.keep: frozenset[int] = frozenset()
        self.moves: tuple[int, ...] = ()

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the steps on inputs, which may be fewer than the subgraph names."""
        values = self.values
        for slot, value in zip(self.inputs, inputs, strict=False):
            values[slot] = value
        run_steps(self.steps, values, self.device, self.keep)
        results = [values[slot] for slot in self.outputs]
        for place in self.moves:
            results[place] = _moved(results[place], self.device)
        return tuple(results)


def run_steps(steps: Sequence[Step], values: Values, device: torch.device, keep: frozenset[int]) -> None:
    """Run steps on a list of values; slots in ``keep`` are not let go of."""
    anywhere = device.type != "cpu"
    for step in steps:
        arguments = [values[slot] for slot in step.inputs]
        if anywhere:
            for place in step.moves:
                arguments[place] = _moved(arguments[place], device)
        for block in step.bodies:
            block.values, block.device, block.keep = values, device, keep
        try:
            result = step.run(*arguments)
        except (torch.cuda.OutOfMemoryError, ModelError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, NoMeaning) as error:
            node = step.node
            raise ModelError(
                f"{node.op_type} {quoted(node.name)} can't run on these inputs: {one_line(error)}"
            ) from error
        if anywhere and step.moves_outputs:
            result = _moved(result, device)
        if type(result) is tuple:
            for slot, value in zip(step.outputs, result, strict=False):
                values[slot] = value
        else:
            values[step.outputs[0]] = result
        for slot in step.frees:
            if slot not in keep:
                values[slot] = None


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_moved(part, device) for part in value) if type(value) is tuple else value


@dataclass(slots=True)
class Program:
    """Steps, and where their values come from.

    Attributes:
        steps: in the order of the graph.
        slots: of every value by name.
        constants: contents of slots that are the same at every run; they go where the module is.
        sizes: as ``constants``, for slots that stay in main memory.
        size: number of slots.
    """

    steps: list[Step] = field(default_factory=list)
    slots: dict[str, int] = field(default_factory=dict)
    constants: dict[int, Tensor] = field(default_factory=dict)
    sizes: dict[int, Tensor] = field(default_factory=dict)
    size: int = 1


def missing_meanings(model: ir.Model) -> Counter[str]:
    """Return the operators that have no torch meaning, with how many nodes there are of each."""
    return Counter(
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}:{node.op_type}"
        for node in nodes_in(model.graph)
        if meaning_for(node) is None
    )


def build_program(
    model: ir.Model, varying: Iterable[ir.Value], floats: Mapping[torch.dtype, torch.dtype], mode: Mode
) -> Program:
    """Return the program of a model that was written out.

    Args:
        model: without functions; every constant is an initializer of the main graph.
        varying: initializers that are not constants: what trains, statistics, and defaults of inputs.
        floats: element types that stand for another one.
        mode: how the module runs; meanings keep it.

    Raises:
        ModelError: an operator, or a form of it, has no torch meaning; the message names it.
    """
    missing = missing_meanings(model)
    if missing:
        named = ", ".join(
            f"{name} ({count} node{'s' * (count > 1)})" for name, count in sorted(missing.items())
        )
        raise ModelError(
            f"no torch meaning yet for {named}; what needs gradients can't be done with this model"
        )
    return _Builder(model, set(varying), dict(floats), mode).build()


class _Builder:
    """One walk over the nodes."""

    def __init__(
        self, model: ir.Model, varying: set[ir.Value], floats: dict[torch.dtype, torch.dtype], mode: Mode
    ) -> None:
        self.model = model
        self.varying = varying
        self.floats = floats
        self.mode = mode
        self.slot_of: dict[ir.Value, int] = {}
        self.constants: dict[ir.Value, Tensor | None] = {}
        self.arrays: dict[ir.Value, Array] = {}
        self.no_contents: set[ir.Value] = set()

    def build(self) -> Program:
        graph = self.model.graph
        program = Program()
        for value in (*graph.inputs, *graph.initializers.values()):
            self.slot(value)
        program.steps = self._steps(graph)
        program.slots = {str(value.name): slot for value, slot in self.slot_of.items() if value.name}
        program.size = len(self.slot_of) + 1
        used = {slot for step in _all_steps(program.steps) for slot in step.inputs}
        used.update(
            slot for step in _all_steps(program.steps) for body in step.bodies for slot in body.outputs
        )
        used.update(self.slot(value) for value in graph.outputs)
        for value, slot in self.slot_of.items():
            if slot in used:
                contents = self.contents(value)
                if contents is not None:
                    program.constants[slot] = contents
        _place(program)
        read = {slot for step in _all_steps(program.steps) for slot in step.inputs}
        read.update(self.slot(value) for value in graph.outputs)
        program.constants = {slot: found for slot, found in program.constants.items() if slot in read}
        return program

    def slot(self, value: ir.Value | None) -> int:
        """Return the slot of a value; 0 for an omitted one."""
        return 0 if value is None else self.slot_of.setdefault(value, len(self.slot_of) + 1)

    def contents(self, value: ir.Value | None) -> Tensor | None:
        """Return a value that is the same at every run, None for others."""
        if value is None:
            return None
        if value not in self.constants:
            stored = value.is_initializer() and value.const_value is not None and value not in self.varying
            self.constants[value] = as_torch(value.const_value, self.floats) if stored else None  # type: ignore[arg-type]
        return self.constants[value]

    def _array(self, value: ir.Value | None) -> Array | None:
        contents = self.contents(value)
        if contents is None or value is None:
            return None
        if value not in self.arrays:
            plain = contents.float() if contents.dtype == torch.bfloat16 else contents
            self.arrays[value] = plain.numpy()
        return self.arrays[value]

    def _steps(self, graph: ir.Graph) -> list[Step]:
        nodes = list(graph)
        steps: list[Step] = []
        for node in nodes:
            step = self._step(node)
            if step is not None:
                steps.append(step)
        own = {value for node in nodes for value in node.outputs} | set(graph.inputs)
        _free(steps, {self.slot(value) for value in own}, {self.slot(value) for value in graph.outputs})
        return steps

    def _step(self, node: ir.Node) -> Step | None:
        """Return the step of a node, None where it was run in advance."""
        entry = meaning_for(node)
        if entry is None:
            raise AssertionError("the missing ones were named")
        bodies: dict[int, Block] = {}

        def body_of(graph: ir.Graph) -> Block:
            if id(graph) not in bodies:
                bodies[id(graph)] = self._block(graph)
            return bodies[id(graph)]

        static = Static(
            node,
            self._version(node),
            lambda index: self._array(node.inputs[index]),
            body_of,
            self.floats,
            self.mode,
        )
        try:
            run = entry.build(static)
            folded = self._folded(node, entry, run)
        except NoMeaning as error:
            raise ModelError(
                f"no torch meaning yet for {node.op_type} {quoted(node.name)}: {error}"
            ) from error
        if folded:
            return None
        return Step(
            node,
            run,
            tuple(self.slot(value) for value in node.inputs),
            tuple(self.slot(value) for value in node.outputs),
            host=entry.host,
            bodies=tuple(bodies.values()),
        )

    def _block(self, graph: ir.Graph) -> Block:
        for value in graph.inputs:
            self.slot(value)
        steps = self._steps(graph)
        return Block(
            [self.slot(value) for value in graph.inputs], [self.slot(value) for value in graph.outputs], steps
        )

    def _version(self, node: ir.Node) -> int:
        imports = self.model.graph.opset_imports or self.model.opset_imports
        domain = "" if node.domain == "ai.onnx" else node.domain
        return node.version or imports.get(domain, imports.get("ai.onnx", 1) if not domain else 1)

    def _folded(self, node: ir.Node, entry: Entry, run: Run) -> bool:
        """Run a node in advance if all its inputs are constants, and the result is small; say whether."""
        if not entry.folds or graphs_in(node):
            return False
        if node.op_type in _SIZES:
            return self._known_size(node, run)
        inputs = [self.contents(value) for value in node.inputs]
        if any(found is None and value is not None for found, value in zip(inputs, node.inputs, strict=True)):
            return False
        if any(output.is_graph_output() for output in node.outputs):
            return False
        given = sum(_bytes(found) for found in inputs if found is not None)
        if given > _SMALL_BYTES and not entry.host and node.op_type in _GROWING:
            return False
        try:
            with torch.no_grad():
                result = run(*inputs)
        except (RuntimeError, ValueError, TypeError, IndexError, NoMeaning):
            return False  # it says so when it runs, if it ever does
        results = result if type(result) is tuple else (result,)
        if any(not isinstance(part, Tensor) for part in results if part is not None):
            return False
        if sum(_bytes(part) for part in results if part is not None) > max(_SMALL_BYTES, given):
            return False
        for value, part in zip(node.outputs, results, strict=False):
            self.constants[value] = part
        return True

    def _known_size(self, node: ir.Node, run: Run) -> bool:
        """Note the size of a stored tensor, which stays as it is when its numbers train."""
        value, (output,) = node.inputs[0], node.outputs
        if value is None or output.is_graph_output() or value.is_graph_input():
            return False
        contents = self.contents(value)
        if contents is None and value.is_initializer() and value.const_value is not None:
            contents = torch.empty(tuple(value.const_value.shape.numpy()), device="meta")
        if contents is None:
            return False
        self.constants[output] = run(contents)
        return True


#: Products may be far larger than both factors: not worth a trial.
_GROWING = frozenset({"Einsum", "Expand", "MatMul", "Gemm", "Tile"})


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def _all_steps(steps: Iterable[Step]) -> Iterable[Step]:
    for step in steps:
        yield step
        for body in step.bodies:
            yield from _all_steps(body.steps)


def _free(steps: Sequence[Step], own: set[int], returned: set[int]) -> None:
    """Write into each step which values of its own graph are read there for the last time."""
    seen: set[int] = set(returned)
    for step in reversed(steps):
        read = {slot for inner in _all_steps([step]) for slot in inner.inputs}
        read |= {slot for inner in _all_steps([step]) for body in inner.bodies for slot in body.outputs}
        last = [
            slot for slot in sorted(read | set(step.outputs)) if slot in own and slot not in seen and slot
        ]
        step.frees = tuple(last)
        seen.update(read)


# --- what stays in main memory ------------------------------------------------------------------------------

_SIZES = frozenset({"Shape", "Size"})


def _place(program: Program) -> None:
    """Decide which steps compute in main memory, and which inputs have to be moved."""
    steps = list(_all_steps(program.steps))
    wanted: set[int] = set()
    for step in reversed(steps):
        wanted.update(step.inputs[place] for place in step.host if place < len(step.inputs))
        if wanted.intersection(step.outputs) and step.node.op_type not in _SIZES and not step.bodies:
            wanted.update(step.inputs)
    constants = set(program.constants)
    host: set[int] = set()
    for step in steps:
        if step.node.op_type in _SIZES:
            step.is_host = True
        elif wanted.intersection(step.outputs) and not step.bodies:
            step.is_host = all(slot in host or slot in constants or not slot for slot in step.inputs)
        if step.is_host:
            host.update(step.outputs)
    twins: dict[int, int] = {}

    def in_memory(slot: int) -> int:
        if slot not in constants:
            return slot
        if slot not in twins:
            twins[slot] = program.size
            program.sizes[program.size] = program.constants[slot]
            program.size += 1
        return twins[slot]

    for step in steps:
        computes = step.is_host and step.node.op_type not in _SIZES
        step.inputs = tuple(
            in_memory(slot) if computes or place in step.host else slot
            for place, slot in enumerate(step.inputs)
        )
        if step.is_host:
            continue
        known = host | set(twins.values()) | {0}
        step.moves = tuple(
            place for place, slot in enumerate(step.inputs) if slot in host and place not in step.host
        )
        step.moves_outputs = all(slot in known for slot in step.inputs)
        for body in step.bodies:
            body.moves = tuple(place for place, slot in enumerate(body.outputs) if slot in host)
