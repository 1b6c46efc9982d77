"""Two outlines of the same graph -> which name of the one is which of the other.

Inputs of nodes have an order, and so have the outputs of a graph. Whoever walks both graphs from their
outputs to their inputs therefore meets every node together with its counterpart, whatever the two are called
and in whatever order they stand: nothing is guessed, however alike parts of a graph are. The first place
where the walks differ is a difference of the graphs, and not one that follows from another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnxprune.errors import PlanError
from onnxprune.messages import quoted, visible
from onnxprune.outlines import Outline, OutlinedNode, OutlinedTensor, OutlinedValue

#: Operators that read sizes from a stored tensor; those of all others are axes, places, counts.
_READ_SIZES = frozenset({"ConstantOfShape", "Expand", "Reshape"})

#: Longest message on a difference: names in it may be long, and there are up to four.
_LONGEST_DIFFERENCE = 1000

#: Operators that give the same for operands in another order.
_COMMUTATIVE = frozenset({"Add", "And", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor"})


@dataclass(frozen=True, slots=True)
class Matching:
    """What is called how in two models of one graph.

    Attributes:
        nodes: name of each node in the later model, by that in the earlier one.
        values: the same of inputs, and of what nodes write.
        tensors: the same of stored tensors: several where the later model stores apart what the earlier one
            shares, as exporters do with tensors that happen to be equal.
        read: name of a stored tensor in the later model, by the earlier names of a node that reads it and its
            own.
        other_sizes: what is to be said of tensors, inputs and outputs that have other sizes, by later name.
    """

    nodes: Mapping[str, str]
    values: Mapping[str, str]
    tensors: Mapping[str, tuple[str, ...]]
    read: Mapping[tuple[str, str], str] = field(default_factory=dict)
    other_sizes: Mapping[str, str] = field(default_factory=dict)

    @property
    def renamed(self) -> int:
        """How many nodes and stored tensors have another name."""
        nodes = sum(before != after for before, after in self.nodes.items())
        return nodes + sum(after != (before,) for before, after in self.tensors.items())


def match_inputs(before: Sequence[str], after: Sequence[str]) -> dict[str, str]:
    """Return the later name of each input, by its earlier one: the same names, else the same places."""
    if set(before) == set(after):
        return {name: name for name in before}
    return dict(zip(before, after, strict=False))


def match(before: Outline, after: Outline) -> Matching:
    """Find every node, value and stored tensor of one model in another one of the same graph.

    Tensors, inputs and outputs may have other sizes, which is told; whether that matters depends on what is
    done with them.

    Args:
        before: the model whose names are known.
        after: the model whose names are wanted.

    Raises:
        PlanError: the graphs differ; the message names the first difference.
    """
    walk = _Walk(before, after)
    walk.run()
    return Matching(
        walk.nodes,
        walk.values,
        {name: tuple(dict.fromkeys(found)) for name, found in walk.tensors.items()},
        walk.read,
        walk.other_sizes,
    )


class _Walk:
    """A walk through two graphs at once, from the outputs to the inputs."""

    def __init__(self, before: Outline, after: Outline) -> None:
        self.before, self.after = _Index(before), _Index(after)
        self.nodes: dict[str, str] = {}
        self.values: dict[str, str] = {}
        self.taken: dict[str, str] = {}  # the earlier value that a later one was found for
        self.tensors: dict[str, list[str]] = {}
        self.read: dict[tuple[str, str], str] = {}
        self.other_sizes: dict[str, str] = {}
        self.sizes: set[tuple[int, int]] = set()  # that inputs have: before, and now
        self.waiting: list[tuple[str | None, str | None, _Reader]] = []

    def run(self) -> None:
        inputs = _by_name_or_place(self.before.outline.inputs, self.after.outline.inputs, "input")
        for old, new in inputs:
            self._interface(old, new, "input")
            self._pair(old.name, new.name, _Reader("the graph", 0))
        outputs = _by_name_or_place(self.before.outline.outputs, self.after.outline.outputs, "output")
        for old, new in outputs:
            self._interface(old, new, "output")
        self.waiting += [
            (old.name, new.name, _Reader(f"output {quoted(new.name)}", None))
            for old, new in reversed(outputs)
        ]
        while self.waiting:
            self._visit(*self.waiting.pop())

    def _visit(self, old: str | None, new: str | None, reader: _Reader) -> None:
        """Look at what stands at one place of both graphs."""
        if old is None or new is None:
            if old is not new:
                there = "nothing" if new is None else quoted(new)
                raise self._differs(f"{reader} is {there}, but {'nothing' if old is None else quoted(old)}")
            return
        tensors = self.before.tensors.get(old), self.after.tensors.get(new)
        if tensors[0] is not None and tensors[1] is not None:
            self._tensor(old, new, tensors[0], tensors[1], reader)
            return
        if old in self.values or new in self.taken:
            if self.values.get(old) != new:
                expected = self.values.get(old)
                wanted = self.after.where(expected) if expected else f"what {self.before.where(old)} was"
                raise self._differs(f"{reader} is {self.after.where(new)}, but {wanted}")
            return
        producers = self.before.producers.get(old), self.after.producers.get(new)
        if producers[0] is None or producers[1] is None or producers[0][1] != producers[1][1]:
            raise self._differs(f"{reader} is {self.after.where(new)}, but {self.before.where(old)}")
        self._node(producers[0][0], producers[1][0], reader)

    def _node(self, old: OutlinedNode, new: OutlinedNode, reader: _Reader) -> None:
        if old.operator != new.operator:
            raise self._differs(f"{reader} is {_named(new)}, but {_named(old)}")
        for name in sorted({*old.attributes, *new.attributes}):
            ours, theirs = new.attributes.get(name), old.attributes.get(name)
            if ours != theirs:
                raise self._differs(
                    f"{_named(new)} has {name} {ours or 'not given'}, but {theirs or 'not given'}"
                )
        if len(old.inputs) != len(new.inputs):
            raise self._differs(f"{_named(new)} has {len(new.inputs)} inputs, but {len(old.inputs)}")
        self.nodes[old.name] = new.name
        for written, other in zip(old.outputs, new.outputs, strict=False):
            if written is not None and other is not None:
                self._pair(written, other, reader)
        for place, pair in reversed(list(enumerate(zip(old.inputs, self._in_order(old, new), strict=True)))):
            self.waiting.append((*pair, _Reader(_named(new), place, old.name, old.operator)))
        self._bodies(old, new)

    def _in_order(self, old: OutlinedNode, new: OutlinedNode) -> Sequence[str | None]:
        """Return what a node reads, in the order in which its counterpart reads it.

        Raises:
            PlanError: its operands can be told apart by their names alone, and these changed places.
        """
        if old.operator not in _COMMUTATIVE:
            return new.inputs
        before = [self.before.look(name) for name in old.inputs]
        after = [self.after.look(name) for name in new.inputs]
        if before == after:
            if old.inputs != new.inputs and set(old.inputs) == set(new.inputs) and len(set(after)) == 1:
                raise PlanError(
                    f"{_named(new)} reads parts that are alike, under names that changed places: whether "
                    "the parts did can't be told; prune anew instead"
                )
            return new.inputs
        if sorted(before) != sorted(after):
            return new.inputs  # the walk tells what differs
        left = list(range(len(after)))
        order = []
        for look in before:
            order.append(next(place for place in left if after[place] == look))
            left.remove(order[-1])
        return [new.inputs[place] for place in order]

    def _bodies(self, old: OutlinedNode, new: OutlinedNode) -> None:
        if {name: len(graphs) for name, graphs in old.bodies.items()} != {
            name: len(graphs) for name, graphs in new.bodies.items()
        }:
            raise self._differs(f"{_named(new)} has other bodies")
        for name, graphs in old.bodies.items():
            for ours, theirs in zip(graphs, new.bodies[name], strict=True):
                if (len(ours.inputs), len(ours.outputs)) != (len(theirs.inputs), len(theirs.outputs)):
                    raise self._differs(f"{name} of {_named(new)} has other inputs or outputs")
                for a, b in zip(ours.inputs, theirs.inputs, strict=True):
                    self._pair(a.name, b.name, _Reader(_named(new), None))
                self.waiting += [
                    (a.name, b.name, _Reader(f"output {place} of {name} of {_named(new)}", None))
                    for place, (a, b) in enumerate(zip(ours.outputs, theirs.outputs, strict=True))
                ]

    def _pair(self, old: str, new: str, reader: _Reader) -> None:
        if self.values.get(old, new) != new or self.taken.get(new, old) != old:
            raise self._differs(f"{reader} is {self.after.where(new)}, but {self.before.where(old)}")
        self.values[old] = new
        self.taken[new] = old

    def _tensor(
        self, old: str, new: str, before: OutlinedTensor, after: OutlinedTensor, reader: _Reader
    ) -> None:
        if before.dtype != after.dtype or len(before.shape) != len(after.shape):
            raise self._differs(
                f"{reader}, {quoted(new)}, is {after.dtype} {list(after.shape)}, but "
                f"{before.dtype} {list(before.shape)}"
            )
        if before.shape != after.shape:
            self.other_sizes[new] = f"has shape {list(after.shape)}, not {list(before.shape)}"
        if not self._same_contents(before, after, reader):
            raise self._differs(f"{reader}, {quoted(new)}, holds {_numbers(after)}, but {_numbers(before)}")
        self.tensors.setdefault(old, []).append(new)
        if reader.name is not None:
            self.read[reader.name, old] = new

    def _same_contents(self, before: OutlinedTensor, after: OutlinedTensor, reader: _Reader) -> bool:
        """Tell whether numbers are the same, or are sizes that grew like one of an input (a batch, say)."""
        ours, theirs = after.contents, before.contents
        if ours is None or theirs is None or len(ours) != len(theirs):
            return ours is theirs
        if reader.operator not in _READ_SIZES:
            return ours == theirs
        return all(
            a == b or (min(a, b) > 0 and any(a * old == b * new for old, new in self.sizes))
            for a, b in zip(ours, theirs, strict=True)
        )

    def _interface(self, old: OutlinedValue, new: OutlinedValue, what: str) -> None:
        """Compare an input or output; other sizes are told."""
        ranks = [None if value.shape is None else len(value.shape) for value in (old, new)]
        if old.type != new.type or ranks[0] != ranks[1]:
            raise self._differs(
                f"{what} {quoted(new.name)} is {new.type} {_sizes(new)}, but {old.type} {_sizes(old)}"
            )
        pairs = list(zip(old.shape or (), new.shape or (), strict=True))
        differing = [(a, b) for a, b in pairs if a != b and (isinstance(a, int) or isinstance(b, int))]
        if differing:
            self.other_sizes[new.name] = f"has shape {_sizes(new)}, not {_sizes(old)}"
        if what == "input":
            self.sizes.update(
                (a, b) for a, b in differing if isinstance(a, int) and isinstance(b, int) and a > 0 and b > 0
            )

    def _differs(self, what: str) -> PlanError:
        """Say how the graphs differ, and which inputs have other sizes: exporters write these into graphs."""
        inputs = [value.name for value in self.after.outline.inputs if value.name in self.other_sizes]
        if not inputs:
            return _differs(what)
        name = inputs[0]
        return _differs(what, f"export it with the same inputs ({quoted(name)} {self.other_sizes[name]})")


@dataclass(frozen=True, slots=True)
class _Reader:
    """A place that is read: an input of a node, or an output of a graph."""

    where: str
    place: int | None
    name: str | None = None
    operator: str | None = None

    def __str__(self) -> str:
        return self.where if self.place is None else f"input {self.place} of {self.where}"


class _Index:
    """An outline, with what writes each value. Values of all bodies have names of their own."""

    def __init__(self, outline: Outline) -> None:
        self.outline = outline
        self.producers: dict[str, tuple[OutlinedNode, int]] = {}
        self.tensors: dict[str, OutlinedTensor] = {}
        self._looks: dict[str, int] | None = None
        for graph in outline.everything():
            self.tensors.update(graph.tensors)
            for node in graph.nodes:
                self.producers.update(
                    {name: (node, place) for place, name in enumerate(node.outputs) if name is not None}
                )

    def look(self, name: str | None) -> int:
        """Return a number that values share which are computed alike, weights and sizes aside."""
        if self._looks is None:
            self._looks = {value.name: hash(place) for place, value in enumerate(self.outline.inputs)}
            for graph in self.outline.everything():
                for node in graph.nodes:
                    self._look_at(node, self._looks)
        tensor = self.tensors.get(name or "")
        if tensor is not None:
            return hash((tensor.dtype, len(tensor.shape)))
        return self._looks.get(name or "", 0)

    def _look_at(self, node: OutlinedNode, looks: dict[str, int]) -> None:
        read = [self.look(name) for name in node.inputs]
        if node.operator in _COMMUTATIVE:
            read.sort()
        said = (node.operator, tuple(sorted(node.attributes.items())), tuple(read))
        looks.update({name: hash((place, said)) for place, name in enumerate(node.outputs) if name})

    def where(self, name: str) -> str:
        """Say what a value is."""
        if name in self.tensors:
            return f"the stored tensor {quoted(name)}"
        if name in self.producers:
            node, place = self.producers[name]
            return _named(node) if place == 0 else f"output {place} of {_named(node)}"
        return f"input {quoted(name)}"


def _by_name_or_place(
    before: Sequence[OutlinedValue], after: Sequence[OutlinedValue], what: str
) -> list[tuple[OutlinedValue, OutlinedValue]]:
    """Pair inputs or outputs: by name where all are the same, else in their order."""
    if len(before) != len(after):
        raise _differs(f"it has {len(after)} {what}s, but {len(before)}")
    names = match_inputs([value.name for value in before], [value.name for value in after])
    named = {value.name: value for value in after}
    return [(value, named[names[value.name]]) for value in before]


def _differs(what: str, do: str = "prune anew instead") -> PlanError:
    # operators and types are any text in a plan that somebody else wrote
    text = f"the plan is for another graph: {what} in the model of the plan; {do}"
    return PlanError(visible(text, _LONGEST_DIFFERENCE))


def _named(node: OutlinedNode) -> str:
    return f"{node.operator} {quoted(node.name)}"


def _numbers(tensor: OutlinedTensor) -> str:
    return "no sizes" if tensor.contents is None else str(list(tensor.contents))


def _sizes(value: OutlinedValue) -> str:
    return "of any rank" if value.shape is None else f"[{', '.join(map(str, value.shape))}]"
