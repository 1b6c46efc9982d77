"""Model -> residual branches: the f of every y = x + f(x), which can go whole because x takes the place of y.

A sum is followed through all the Adds that it is made of, so y = x + a(x) + b(x) has two branches, however
it is bracketed. A term is a branch if another term (its shortcut, of the shape of the sum) is computed on the
way to it, and if weights go with it. Where a branch holds others (a long residual around a whole stage), the
inner ones are offered. Only the main graph is searched, not the bodies of If, Loop and Scan.
"""

from __future__ import annotations

import functools
import heapq
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxprune.model.module_paths import common_path
from onnxprune.model.needed import inner_nodes, owners
from onnxprune.model.shapes import Shapes
from onnxprune.ops.channels import Use
from onnxprune.types import Branch, BranchKind, Skipped

#: Operators that multiply and sum; two computed operands mean attention.
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum", "FusedMatMul", "TransposeMatMul", "MatMulInteger"})
_CONVOLUTIONS = frozenset(
    {"Conv", "ConvTranspose", "FusedConv", "ConvInteger", "QLinearConv", "NhwcFusedConv"}
)
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_QUANTIZED = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4})

#: com.microsoft: a residual sum and the norm after it in one.
_FUSED = frozenset({"SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SkipGroupNorm"})

_NO_IDENTITY = (
    "no operand of this sum is computed from another one (a projection on the shortcut, or a merge of "
    "paths), so nothing could take its place"
)


def find_branches(graph: ir.Graph, shapes: Shapes) -> tuple[tuple[Branch, ...], tuple[Skipped, ...]]:
    """Return the residual branches that can go, in order of the graph, and those that can't, with reasons.

    Args:
        graph: the main graph of a prepared model: constants are initializers, every node has a name.
        shapes: the sizes of its values.
    """
    return _Search(graph, shapes).run()


class Removal:
    """What goes with branches of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes = {str(node.name): node for node in graph}
        self.readers = _Readers(graph)

    def gone_with(self, branches: Iterable[Branch]) -> frozenset[ir.Node]:
        """Return the nodes that nothing needs once these branches are removed, those of subgraphs too."""
        gone = self.readers.only_for([Use(self.nodes[branch.node], branch.operand) for branch in branches])
        return gone.union(inner for node in gone for inner in inner_nodes(node))

    def why_not(self, removed: Sequence[Branch], kept: Iterable[Branch]) -> str | None:
        """Say what else would be cut off if these branches went together, None if nothing is.

        A decoder without its last cross-attention needs no encoder, and its outputs do not depend on the
        inputs of that: such a model computes, but not what it is there for.
        """
        gone = self.gone_with(removed)
        for branch in kept:
            if self.nodes[branch.node] in gone:
                return f"nothing would need {branch.name} any more"
        for value in self.graph.inputs:
            readers = [] if value.is_initializer() else value.uses()
            if readers and not value.is_graph_output() and all(node in gone for node, _ in readers):
                return f"nothing would depend on input {value.name} any more"
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """A branch: the x that it is added to, the y that this gives, and the nodes that go with it."""

    branch: Branch
    shortcut: ir.Value
    sum: ir.Value
    gone: frozenset[ir.Node]


class _Readers:
    """Who reads what; nodes inside subgraphs count as the node that holds them."""

    def __init__(self, graph: ir.Graph) -> None:
        self.nodes = list(graph)
        self.order = {node: number for number, node in enumerate(self.nodes)}
        self.owners = owners(graph)
        self.captured: dict[ir.Node, list[ir.Value]] = {}
        for inner, owner in self.owners.items():
            self.captured.setdefault(owner, []).extend(value for value in inner.inputs if value is not None)

    def uses(self, value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
        """Yield the nodes of the graph that read a value, and as which input; -1 for inside a subgraph."""
        for node, index in value.uses():
            owner = self.owners.get(node)
            yield (node, index) if owner is None else (owner, -1)

    def reads(self, node: ir.Node) -> Iterator[ir.Value]:
        """Yield the values that a node reads, those that its subgraphs capture too."""
        yield from (value for value in node.inputs if value is not None)
        yield from self.captured.get(node, ())

    def only_for(self, terms: Sequence[Use]) -> frozenset[ir.Node]:
        """Return the nodes whose results reach the outputs by way of these operands alone."""
        cut = {(term.node, term.index) for term in terms}
        gone: set[ir.Node] = set()
        waiting = _LatestFirst(self.order)
        for term in terms:
            waiting.push(term.value)
        while (number := waiting.pop()) is not None:
            node = self.nodes[number]
            if all(self._goes(output, cut, gone) for output in node.outputs):
                gone.add(node)
                for value in self.reads(node):
                    waiting.push(value)
        return frozenset(gone)

    def _goes(self, output: ir.Value, cut: set[tuple[ir.Node, int]], gone: set[ir.Node]) -> bool:
        return not output.is_graph_output() and all(
            (node, index) in cut or node in gone for node, index in self.uses(output)
        )


class _LatestFirst:
    """Producers of values, each once, from the end of the graph to its beginning: readers before the read."""

    def __init__(self, order: dict[ir.Node, int]) -> None:
        self.order = order
        self.heap: list[int] = []
        self.seen: set[int] = set()

    def push(self, value: ir.Value) -> None:
        number = self.order.get(value.producer())  # type: ignore[arg-type]
        if number is not None and number not in self.seen:
            self.seen.add(number)
            heapq.heappush(self.heap, -number)

    def pop(self) -> int | None:
        return -heapq.heappop(self.heap) if self.heap else None


class _Search:
    """One search for branches."""

    def __init__(self, graph: ir.Graph, shapes: Shapes) -> None:
        self.graph = graph
        self.shapes = shapes
        self.readers = _Readers(graph)
        self.found: list[_Found] = []
        self.refused: dict[str, str] = {}
        self.before: dict[ir.Value, int] = {}
        self._look_back()

    def _look_back(self) -> None:
        """Give every computed value a bit, and collect the bits of all that it is computed from, and its own.

        Values that depend on no input of the graph have none: they are constants.
        """
        for value in self.graph.inputs:
            if not value.is_initializer():
                self.before[value] = 1 << len(self.before)
        bit = dict(self.before)
        for node in self.graph:
            mask = 0
            for value in self.readers.reads(node):
                mask |= self.before.get(value, 0)
            if mask:
                for output in node.outputs:
                    bit[output] = 1 << len(bit)
                    self.before[output] = mask | bit[output]
        self.bit = bit

    def run(self) -> tuple[tuple[Branch, ...], tuple[Skipped, ...]]:
        sums = self._sums()
        for node in sums:
            if not self._is_part(node.outputs[0], sums):
                self._look_at(node.outputs[0], list(self._terms(node, sums)))
        for node in self.graph:
            if node.op_type in _FUSED and sum(value in self.before for value in node.inputs[:2]) > 1:
                self.refused[str(node.name)] = (
                    f"the sum is fused into a {node.op_type}, which is not taken apart"
                )
        outermost, holders = self._nested()
        offered = _named([one for one in outermost if one not in holders])
        inside = {str(node.name) for one in offered for node in one.gone}
        skipped = [Skipped(name, reason) for name, reason in self.refused.items() if name not in inside]
        skipped += [
            Skipped(one.branch.name, f"it holds {count} smaller branches, which can go one by one")
            for one, count in zip(_named(list(holders)), holders.values(), strict=True)
        ]
        return tuple(one.branch for one in offered), tuple(skipped)

    def _nested(self) -> tuple[list[_Found], Mapping[_Found, int]]:
        """Return the branches that stand for themselves, and how many others those hold that hold any.

        A sum inside a branch that adds to what comes from outside of it (attention scores, to those of the
        layer before) is a part of that branch. One that adds to something within is a branch of its own, and
        so is one that has nothing to do with what the outer branch is added to (in an encoder that only one
        cross-attention reads).
        """
        home: dict[str, list[_Found]] = {}
        for one in self.found:
            home.setdefault(one.branch.node, []).append(one)
        parts: set[_Found] = set()
        inner: Counter[_Found] = Counter()
        for outer in self.found:
            for one in (one for node in outer.gone for one in home.get(str(node.name), ())):
                start = self.bit[outer.shortcut]
                if self.before[one.shortcut] & start:
                    inner[outer] += 1
                elif self.before[one.sum] & start:
                    parts.add(one)
        outermost = [one for one in self.found if one not in parts]
        return outermost, {one: inner[one] for one in outermost if one in inner}

    def _sums(self) -> dict[ir.Node, list[Use]]:
        """Return the nodes that add several computed values, with those operands."""
        sums = {}
        for node in self.graph:
            if node.op_type in ("Add", "Sum") and not node.domain:
                terms = [Use(node, i) for i, value in enumerate(node.inputs) if value in self.before]
                if len(terms) > 1:
                    sums[node] = terms
        return sums

    def _is_part(self, value: ir.Value, sums: dict[ir.Node, list[Use]]) -> bool:
        """True if a value is a sum that only another sum of the same shape reads."""
        readers = list(self.readers.uses(value))
        if value.producer() not in sums or value.is_graph_output() or len(readers) != 1:
            return False
        node, _ = readers[0]
        return node in sums and self._same_shape(value, node.outputs[0])

    def _terms(self, node: ir.Node, sums: dict[ir.Node, list[Use]]) -> Iterator[Use]:
        """Yield the terms of a sum of sums."""
        waiting = list(reversed(sums[node]))
        while waiting:
            term = waiting.pop()
            producer = term.value.producer()
            if producer in sums and self._is_part(term.value, sums):
                waiting.extend(reversed(sums[producer]))
            else:
                yield term

    def _same_shape(self, a: ir.Value, b: ir.Value) -> bool:
        """True if two values have the same sizes, for every input as far as that is known."""
        given, wanted = self.shapes.dims.get(a), self.shapes.dims.get(b)
        if given is None or wanted is None:
            return False
        return [(dim.size, dim.is_constant) for dim in given] == [
            (dim.size, dim.is_constant) for dim in wanted
        ]

    def _look_at(self, total: ir.Value, terms: Sequence[Use]) -> None:
        """Decide which terms of one sum are branches."""
        unrelated = found = 0
        bits = functools.reduce(operator.or_, (self.bit[term.value] for term in terms))
        for term in terms:
            gone = self.readers.only_for([term])
            heavy = any(self._has_weights(node) for node in gone)
            behind = self.before[term.value] & bits & ~self.bit[term.value]
            shortcuts = [other.value for other in terms if behind & self.bit[other.value]] if behind else []
            if not shortcuts:
                unrelated += heavy
                continue
            fitting = [value for value in shortcuts if self._same_shape(value, total)]
            stays = self._stays((fitting or shortcuts)[0], term.value, gone)
            if heavy and fitting:
                found += 1
                self.found.append(_Found(self._branch(term, total, gone, stays), fitting[0], total, gone))
            elif heavy and total not in self.shapes.dims:
                why = self.shapes.unknown.get(total, "never computed")
                self.refused[str(term.node.name)] = f"the shape of its sum is not known ({why})"
            elif heavy:
                self.refused[str(term.node.name)] = (
                    "its shortcut is repeated to fit the sum, so it can't replace it"
                )
            elif stays:
                self.refused[str(term.node.name)] = (
                    f"what it adds ({stays[-1]} computes it) is read elsewhere, too: nothing would go with it"
                )
        if unrelated and not found:
            self.refused[str(total.producer().name)] = _NO_IDENTITY  # type: ignore[union-attr]

    def _branch(self, term: Use, total: ir.Value, gone: frozenset[ir.Node], stays: Sequence[str]) -> Branch:
        ordered = sorted(gone, key=self.readers.order.__getitem__)
        weights = dict.fromkeys(value for node in ordered for value in self._weights_of(node))
        freed = [w for w in weights if all(node in gone for node, _ in self.readers.uses(w))]
        return Branch(
            name=common_path([node for node in ordered if self._has_weights(node)]),
            kind=self._kind(ordered),
            node=str(term.node.name),
            operand=term.index,
            value=str(term.value.name),
            total=str(total.name),
            axis=self._feature_axis(total, ordered),
            weights=tuple(str(value.name) for value in weights),
            freed=tuple(str(value.name) for value in freed),
            stays=tuple(stays),
        )

    def _weights_of(self, node: ir.Node) -> Iterator[ir.Value]:
        """Yield the float and quantized constants of more than one element that a node reads."""
        for value in self.readers.reads(node):
            tensor = value.const_value if value.is_initializer() else None
            if tensor is None or tensor.size <= 1:
                continue
            if tensor.dtype.is_floating_point() or tensor.dtype in _QUANTIZED:
                yield value

    def _has_weights(self, node: ir.Node) -> bool:
        """True if a node holds a weight with inputs and outputs: norms and scales alone make no layer."""
        known = node.op_type in _PRODUCTS | _CONVOLUTIONS | _RECURRENT
        return any(
            len(value.const_value.shape) >= 2
            and (known or value.const_value.size > max(value.const_value.shape.numpy()))
            for value in self._weights_of(node)
            if value.const_value is not None
        )

    def _stays(self, shortcut: ir.Value, value: ir.Value, gone: frozenset[ir.Node]) -> list[str]:
        """Return the nodes with weights between a shortcut and a branch's end that others read, too."""
        found = []
        waiting = _LatestFirst(self.readers.order)
        waiting.push(value)
        while (number := waiting.pop()) is not None:
            node = self.readers.nodes[number]
            if self.before.get(node.outputs[0], 0) & self.bit[shortcut] and shortcut not in node.outputs:
                if node not in gone and self._has_weights(node):
                    found.append(str(node.name))
                for read in self.readers.reads(node):
                    waiting.push(read)
        return found[::-1]

    def _kind(self, nodes: Sequence[ir.Node]) -> BranchKind:
        types = {node.op_type for node in nodes}
        if any("Attention" in op_type for op_type in types):
            return "attention"
        if any(
            node.op_type in _PRODUCTS and sum(value in self.before for value in node.inputs) > 1
            for node in nodes
        ):
            return "attention"
        if types & _RECURRENT:
            return "recurrent"
        if any(node.op_type in _CONVOLUTIONS and _is_wide(node) for node in nodes):
            return "convolution"
        return "feed_forward" if types & (_PRODUCTS | _CONVOLUTIONS) else "other"

    def _feature_axis(self, value: ir.Value, nodes: Sequence[ir.Node]) -> int:
        """Return the axis of features: 1 for what convolutions make, the last one of sequences.

        Images whose last layer is a matrix product (of ConvNeXt, of Swin) have their features where as many
        positions are as that layer has outputs.
        """
        rank = len(self.shapes.dims[value])
        last = next(
            (n for n in reversed(nodes) if n.op_type in _PRODUCTS | _CONVOLUTIONS and self._has_weights(n)),
            None,
        )
        if last is not None and last.op_type in _CONVOLUTIONS:
            return min(1, rank - 1)
        made = None if last is None else self.shapes.shape(last.outputs[0])
        sizes = self.shapes.shape(value)
        if rank < 4 or made is None or sizes is None:
            return rank - 1
        return next((axis for axis in range(rank - 1, 0, -1) if sizes[axis] == made[-1]), rank - 1)


def _is_wide(node: ir.Node) -> bool:
    """True for a convolution that looks at more than one place."""
    weight = next(
        (v for v in node.inputs[1:] if v is not None and v.shape is not None and len(v.shape) > 2), None
    )
    return weight is None or weight.shape is None or any(size != 1 for size in weight.shape[2:])


def _named(found: Sequence[_Found]) -> list[_Found]:
    """Give every branch a name of its own: where paths say nothing, that of the node that adds it."""
    seen: Counter[str] = Counter()
    named = []
    for one in found:
        name = one.branch.name or one.branch.node
        seen[name] += 1
        unique = name if seen[name] == 1 else f"{name}#{seen[name]}"
        named.append(replace(one, branch=replace(one.branch, name=unique)))
    return named
