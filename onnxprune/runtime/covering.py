"""Which nodes of a model a kernel of ONNX Runtime stands for.

ONNX Runtime keeps no record of that. What it leaves are names, and they are read in this order:

1. The nodes of the model are renamed (`MARK` and a number) before it is opened. Many a rewriting keeps such a
   name, or makes a new one of it, as in ``fused node#3``.
2. A kernel in the blocked layout of convolutions is called ``VALUE_nchwc``, by the value it was to produce
   (``VALUE_bn_nchwc`` where it was a batch norm).
3. Values keep their names through most fusions: a kernel that writes ``v`` stands for the node that wrote
   ``v``.
4. Nodes that are left were fused. A blocked convolution may have taken in the sum and the activation behind
   it, which its inputs and attributes tell; every other node went into a kernel that reads what it made.
   Nodes that read constants only were folded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnxprune.model.nodes import reads_of

#: Before the number of a node, in the name that it gets for the session.
MARK = "node#"

#: What ONNX Runtime inserts between kernels, and which therefore computes no value of the model.
INSERTED = frozenset({"ReorderInput", "ReorderOutput", "MemcpyFromHost", "MemcpyToHost"})

MARKED = re.compile(rf"{MARK}(\d+)")
_BLOCKED = re.compile(r"^(.*?)_nchwc(?:_token_\d+)?$", re.DOTALL)

#: Begins the name of a value within a function that ONNX Runtime wrote out.
_WRITTEN_OUT = "_inlfunc_"

#: Begins the names of values, and of the casts that make them, where 16 bits are computed in 32.
_CAST = re.compile(r"^Inserted(?:PrecisionFree)?Cast_")

_SUMS = frozenset({"Add", "Sum"})

#: What a kernel on integers (``QLinearConv`` ...) does to its result.
_ROUNDING = frozenset({"QuantizeLinear"})

#: A blocked convolution with this many inputs adds the last one to its result.
_INPUTS_WITH_SUM = 4


def marks(name: str) -> tuple[int, ...]:
    """Return the numbers of nodes that stand in a kernel's name, ascending."""
    return tuple(sorted({int(number) for number in MARKED.findall(name)}))


def cover(graph: ir.Graph, kernels: Sequence[ir.Node]) -> list[tuple[int, ...]]:
    """Return the numbers of the nodes of ``graph`` that each kernel stands for, ascending.

    Args:
        graph: the model's main graph, with nodes named by `MARK`.
        kernels: the nodes of the graph that ONNX Runtime made of it, in their order.
    """
    search = _Search(graph, kernels)
    search.by_name()
    search.by_value()
    search.behind()
    search.before()
    search.parts()
    return [tuple(sorted(nodes)) for nodes in search.covered]


class _Search:
    def __init__(self, graph: ir.Graph, kernels: Sequence[ir.Node]) -> None:
        self.nodes = list(graph)
        self.kernels = kernels
        self.covered: list[set[int]] = [set() for _ in kernels]
        self.owner: dict[int, int] = {}  # number of a node -> of the first kernel that covers it
        self.writer = {str(v.name): n for n, node in enumerate(self.nodes) for v in node.outputs if v.name}
        self.readers: dict[str, list[int]] = defaultdict(list)
        for number, node in enumerate(self.nodes):
            for value in reads_of(node):
                self.readers[str(value.name)].append(number)
        self.results = {str(value.name) for value in graph.outputs}

    def take(self, kernel: int, numbers: Iterable[int]) -> None:
        for number in numbers:
            self.covered[kernel].add(number)
            self.owner.setdefault(number, kernel)

    def by_name(self) -> None:
        for index, kernel in enumerate(self.kernels):
            if _is_inserted(kernel):
                continue
            text = str(kernel.name)
            self.take(index, (number for number in marks(text) if number < len(self.nodes)))
            blocked = _BLOCKED.match(text)
            if blocked:
                value = blocked[1] if blocked[1] in self.writer else blocked[1].removesuffix("_bn")
                self.take(index, [self.writer[value]] if value in self.writer else [])

    def by_value(self) -> None:
        for index, kernel in enumerate(self.kernels):
            if _is_inserted(kernel):
                continue
            numbers = {self.writer[name] for name in _written(kernel) if name in self.writer}
            self.take(index, (number for number in numbers if number not in self.owner))

    def behind(self) -> None:
        """Take what was fused into a kernel that writes no value of the model."""
        for index, kernel in enumerate(self.kernels):
            if not self.covered[index] or any(name in self.writer for name in _written(kernel)):
                continue
            adds = kernel.op_type == "Conv" and len(kernel.inputs) >= _INPUTS_WITH_SUM
            activation = kernel.attributes.get_string("activation", "")
            wanted_types = [_SUMS] if adds else []
            wanted_types += [frozenset({activation})] if activation else []
            wanted_types += [_ROUNDING] if kernel.op_type.startswith("QLinear") else []
            for wanted in wanted_types:
                follower = self._only_reader(max(self.covered[index]))
                if follower is None or follower in self.owner:
                    continue
                if self.nodes[follower].op_type in wanted:
                    self.take(index, [follower])

    def _only_reader(self, number: int) -> int | None:
        names = [str(value.name) for value in self.nodes[number].outputs if value.name]
        readers = {reader for name in names for reader in self.readers[name]}
        return readers.pop() if len(readers) == 1 and not self.results.intersection(names) else None

    def before(self) -> None:
        """Give each node that is left to the first kernel that reads what it made."""
        folded = self._folded()
        for number in reversed(range(len(self.nodes))):
            if number in self.owner or number in folded:
                continue
            readers = (reader for v in self.nodes[number].outputs for reader in self.readers[str(v.name)])
            owners = [self.owner[reader] for reader in readers if reader in self.owner]
            if owners:
                self.take(min(owners), [number])

    def _folded(self) -> set[int]:
        """Return the nodes that depend on no input of the model."""
        folded: set[int] = set()
        constant = {name for node in self.nodes for name in _stored(node)}
        for number, node in enumerate(self.nodes):
            if all(str(value.name) in constant for value in reads_of(node)):
                folded.add(number)
                constant.update(str(value.name) for value in node.outputs)
        return folded

    def parts(self) -> None:
        """Give kernels that are part of what a function was written out to, to the node that called it."""
        readers: dict[str, list[int]] = defaultdict(list)
        for index, kernel in enumerate(self.kernels):
            for value in reads_of(kernel):
                readers[str(value.name)].append(index)
        for index in reversed(range(len(self.kernels))):
            kernel = self.kernels[index]
            if self.covered[index] or not any(name.startswith(_WRITTEN_OUT) for name in _written(kernel)):
                continue
            read = [reader for value in kernel.outputs for reader in readers[str(value.name)]]
            ahead = [reader for reader in read if self.covered[reader]]
            if ahead:
                self.take(index, [min(self.covered[min(ahead)])])


def _is_inserted(kernel: ir.Node) -> bool:
    return kernel.op_type in INSERTED or (kernel.op_type == "Cast" and bool(_CAST.match(str(kernel.name))))


def _written(kernel: ir.Node) -> list[str]:
    """Return the names of what a kernel writes, as they would be without casts in between."""
    return [_CAST.sub("", str(value.name)) for value in kernel.outputs]


def _stored(node: ir.Node) -> list[str]:
    return [str(value.name) for value in node.inputs if value is not None and value.const_value is not None]
