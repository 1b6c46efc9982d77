"""What must hold of a parsed model before anything else looks at it: names, scopes, attributes, functions.

The walk is iterative and visits every node once. It is not a type checker: whether operators accept their
inputs is ONNX Runtime's to say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import quoted
from onnxprune.model.operators import Operators

#: Nodes that a model may have once its functions are written out.
MOST_NODES = 1_000_000

#: Subgraphs within subgraphs; protobuf itself stops at about 32.
DEEPEST_SUBGRAPH = 30

_VALUE_FIELDS = {
    onnx.AttributeProto.FLOAT: "f",
    onnx.AttributeProto.INT: "i",
    onnx.AttributeProto.STRING: "s",
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.INTS: "ints",
    onnx.AttributeProto.STRINGS: "strings",
    onnx.AttributeProto.TENSORS: "tensors",
    onnx.AttributeProto.GRAPHS: "graphs",
    onnx.AttributeProto.SPARSE_TENSORS: "sparse_tensors",
    onnx.AttributeProto.TYPE_PROTOS: "type_protos",
}
_TYPE_OF_FIELD = {name: number for number, name in _VALUE_FIELDS.items()}
_DESCRIPTIONS = frozenset(("name", "type", "doc_string", "ref_attr_name"))

FunctionId: TypeAlias = tuple[str, str, str]


@dataclass(slots=True)
class Found:
    """What a walk over a model came across.

    Attributes:
        tensors: every dense tensor, those inside sparse ones too.
        training_tensors: those of the training information.
        sparse_graphs: graphs with sparse initializers.
        sparse_attributes: attributes that hold one sparse tensor, with their nodes.
        sorted: every node stands after the nodes it depends on.
        misused: the first node that is not what its operator allows. It is told once all else is known to be
            safe: what the nodes of an unsafe file do wrong does not matter.
    """

    tensors: list[onnx.TensorProto] = field(default_factory=list)
    training_tensors: list[onnx.TensorProto] = field(default_factory=list)
    sparse_graphs: list[onnx.GraphProto] = field(default_factory=list)
    sparse_attributes: list[tuple[onnx.NodeProto, onnx.AttributeProto]] = field(default_factory=list)
    sorted: bool = True
    misused: ModelError | None = None


def check_structure(model: onnx.ModelProto) -> Found:
    """Check a parsed model and collect its tensors.

    Raises:
        ModelError: without the model's name in front; the model can't be right.
    """
    if not model.HasField("graph"):
        raise ModelError("holds no graph; is it an ONNX model?")
    if not 1 <= model.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"has IR version {model.ir_version}, this onnx package knows 1 to {onnx.IR_VERSION}; "
            "upgrade onnx, or export the model again"
        )
    _check_text((model.producer_name, model.producer_version, model.domain, model.doc_string))
    _check_text((model.graph.name, model.graph.doc_string))
    walk = _Walk(model)
    for function in model.functions:
        walk.visit_function(function)
    walk.visit_graph(model.graph, _opsets(model.opset_import, "the model"))
    walk.check_expansion()
    for training in model.training_info:
        walk.collect_only((training.initialization, training.algorithm))
    return walk.found


@dataclass(slots=True)
class _Task:
    """A body that is still to be visited.

    Attributes:
        body: a graph or a function.
        outer: names of the enclosing bodies.
        opsets: domains that its nodes may use, and their versions.
        depth: number of enclosing graphs.
        calls: counts the operators of the function or main graph around it; None: collect tensors only.
    """

    body: onnx.GraphProto | onnx.FunctionProto
    outer: tuple[set[str], ...]
    opsets: Mapping[str, int]
    depth: int
    calls: Counter[FunctionId] | None


@dataclass(frozen=True, slots=True)
class _NodeName:
    """How messages call a node; hardly any node is ever called."""

    node: onnx.NodeProto

    def __str__(self) -> str:
        return f"node {quoted(self.node.name or next(iter(self.node.output), ''))}"


class _Walk:
    def __init__(self, model: onnx.ModelProto) -> None:
        self.found = Found()
        self.operators = Operators()
        self.devices = {entry.name for entry in getattr(model, "configuration", ())}  # onnx 1.18 and later
        self.calls: dict[FunctionId, Counter[FunctionId]] = {}
        self.main: Counter[FunctionId] = Counter()
        for function in model.functions:
            identity = _identity(function.domain, function.name, function.overload)
            if identity in self.calls:
                raise ModelError(
                    f"defines the function {quoted(function.name)} twice; export the model again"
                )
            self.calls[identity] = Counter()

    def visit_function(self, function: onnx.FunctionProto) -> None:
        opsets = _opsets(function.opset_import, f"function {quoted(function.name)}")
        calls = self.calls[_identity(function.domain, function.name, function.overload)]
        self._visit(_Task(function, (), opsets, 0, calls))
        for default in function.attribute_proto:
            _check_attribute(default, f"function {quoted(function.name)}")
            for graph in self._collect(onnx.NodeProto(), default):
                self._visit(_Task(graph, (), opsets, 1, calls))

    def visit_graph(self, graph: onnx.GraphProto, opsets: Mapping[str, int]) -> None:
        if not graph.output:
            raise ModelError("has a graph without outputs; is it a complete model?")
        for value in graph.input:
            _check_input_type(value)
        self._visit(_Task(graph, (), opsets, 0, self.main))

    def collect_only(self, graphs: Iterable[onnx.GraphProto]) -> None:
        """Collect the tensors of graphs that are kept, but neither understood nor changed."""
        before, self.found.tensors = self.found.tensors, self.found.training_tensors
        for graph in graphs:
            self._visit(_Task(graph, (), {}, 0, None))
        self.found.tensors = before

    def _visit(self, first: _Task) -> None:
        tasks = [first]
        while tasks:
            task = tasks.pop()
            if task.depth > DEEPEST_SUBGRAPH:
                raise ModelError(f"nests subgraphs deeper than {DEEPEST_SUBGRAPH}; export the model again")
            names = self._declare(task)
            available = names.copy()
            names.update(name for node in task.body.node for name in node.output if name)
            _check_text(names)
            for node in task.body.node:
                if task.calls is not None:
                    self._check_node(node, task, available, names)
                    available.update(node.output)
                for attribute in node.attribute:
                    graphs = self._collect(node, attribute, task.calls is not None)
                    outer = (*task.outer, names)
                    tasks += (
                        _Task(graph, outer, task.opsets, task.depth + 1, task.calls) for graph in graphs
                    )
            if task.calls is not None:
                _check_outputs(task.body, names)

    def _declare(self, task: _Task) -> set[str]:
        """Return the names of inputs and initializers; collect the tensors of the latter."""
        body = task.body
        if isinstance(body, onnx.FunctionProto):
            return set(body.input)
        self.found.tensors.extend(body.initializer)
        self.operators.know(body.initializer)
        initializers = [tensor.name for tensor in body.initializer]
        for sparse in body.sparse_initializer:
            self.found.tensors += (sparse.values, sparse.indices)
            initializers.append(sparse.values.name)
        inputs = [value.name for value in body.input]
        if task.calls is not None:
            if body.sparse_initializer:
                self.found.sparse_graphs.append(body)
            _check_names(inputs, "graph input")
            _check_names(initializers, "initializer")
        return {*inputs, *initializers}

    def _check_node(self, node: onnx.NodeProto, task: _Task, available: set[str], names: set[str]) -> None:
        what = _NodeName(node)
        op_type, domain, overload = node.op_type, node.domain, node.overload
        _check_text((node.name, op_type, domain, overload, node.doc_string))
        if not op_type:
            raise ModelError(f"{what} has no operator; the file is damaged")
        devices = getattr(node, "device_configurations", ())
        if devices and any(entry.configuration_id not in self.devices for entry in devices):
            raise ModelError(f"{what} names a configuration of devices that the model does not have")
        domain = _plain(domain)
        if domain not in task.opsets:
            raise ModelError(
                f"{what} uses the operator domain {quoted(node.domain)}, which the model does not import; "
                "export the model again"
            )
        if op_type == "EPContext":
            raise ModelError(f"{what} holds a compiled EPContext; start from the model it was compiled from")
        for name in node.input:
            if name in available or not name:
                continue
            if name in names:
                self.found.sorted = False
            elif not any(name in outer for outer in task.outer):
                raise ModelError(
                    f"{what} uses {quoted(name)}, which nothing produces; the model is incomplete"
                )
        seen: set[str] = set()
        for attribute in node.attribute:
            _check_text((attribute.name, attribute.ref_attr_name, attribute.doc_string))
            if attribute.name in seen:
                raise ModelError(
                    f"{what} has the attribute {quoted(attribute.name)} twice; export the model again"
                )
            seen.add(attribute.name)
            _check_attribute(attribute, what)
        called = False
        if self.calls:
            identity = domain, op_type, overload
            called = identity in self.calls
            if task.calls is not None:
                task.calls[identity] += 1
        if not called and self.found.misused is None:
            try:
                self.operators.check(node, domain, task.opsets[domain], what)
            except ModelError as error:
                self.found.misused = error

    def _collect(
        self, node: onnx.NodeProto, attribute: onnx.AttributeProto, understood: bool = True
    ) -> list[onnx.GraphProto]:
        """Collect the tensors of an attribute; return its graphs."""
        kind = attribute.type
        if kind == onnx.AttributeProto.TENSOR and not attribute.ref_attr_name:
            self.found.tensors.append(attribute.t)
        elif kind == onnx.AttributeProto.TENSORS:
            self.found.tensors.extend(attribute.tensors)
        elif kind == onnx.AttributeProto.GRAPH and not attribute.ref_attr_name:
            return [attribute.g]
        elif kind == onnx.AttributeProto.GRAPHS:
            return list(attribute.graphs)
        elif kind == onnx.AttributeProto.SPARSE_TENSOR and not attribute.ref_attr_name:
            self.found.tensors += (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            if understood:
                self.found.sparse_attributes.append((node, attribute))
        elif kind == onnx.AttributeProto.SPARSE_TENSORS:
            for sparse in attribute.sparse_tensors:
                self.found.tensors += (sparse.values, sparse.indices)
        return []

    def check_expansion(self) -> None:
        """Bound the nodes of the model once functions are written out; refuse functions that call themselves.

        Functions are taken in the order in which their callees are done (Kahn), so nothing recurses.
        """
        if not self.calls:
            return
        callees = {
            name: {called for called in calls if called in self.calls} for name, calls in self.calls.items()
        }
        callers: dict[FunctionId, list[FunctionId]] = {name: [] for name in self.calls}
        for name, called in callees.items():
            for one in called:
                callers[one].append(name)
        ready = [name for name, called in callees.items() if not called]
        sizes: dict[FunctionId, int] = {}
        while ready:
            name = ready.pop()
            sizes[name] = _expanded(self.calls[name], sizes)
            for caller in callers[name]:
                callees[caller].discard(name)
                if not callees[caller]:
                    ready.append(caller)
        if len(sizes) < len(self.calls):
            caught = next(name for name in self.calls if name not in sizes)
            raise ModelError(
                f"has functions that call each other in a circle: {quoted(caught[1])}; ONNX forbids that"
            )
        total = _expanded(self.main, sizes)
        if total > MOST_NODES:
            raise ModelError(
                f"grows to {total} nodes once its functions are written out, more than {MOST_NODES}; "
                "it looks like an attack"
            )


def _expanded(calls: Counter[FunctionId], sizes: dict[FunctionId, int]) -> int:
    return sum(count * sizes.get(name, 1) for name, count in calls.items())


def _identity(domain: str, name: str, overload: str) -> FunctionId:
    return _plain(domain), name, overload


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _opsets(imports: Iterable[onnx.OperatorSetIdProto], what: str) -> Mapping[str, int]:
    """Return the versions of the imported domains, the default one as an empty string."""
    versions: dict[str, int] = {}
    newest = onnx.defs.onnx_opset_version()
    for opset in imports:
        domain = _plain(opset.domain)
        if opset.version < 1 or (not domain and opset.version > newest):
            raise ModelError(
                f"{what} asks for opset {opset.version} of {quoted(opset.domain or 'ai.onnx')}, this onnx "
                f"package knows 1 to {newest}; upgrade onnx, or export the model again"
            )
        if versions.setdefault(domain, opset.version) != opset.version:
            raise ModelError(
                f"{what} asks for two versions of {quoted(domain or 'ai.onnx')}; export the model again"
            )
    if not versions:
        raise ModelError(f"{what} names no opset; is it complete?")
    return versions


def _check_text(texts: Iterable[str]) -> None:
    """Refuse names that are not UTF-8: protobuf hands them out as bytes."""
    if bytes in map(type, texts):
        raise ModelError("has names that are not UTF-8 text; the file is damaged")


def _check_names(names: list[str], what: str) -> None:
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise ModelError(f"has the {what} {quoted(twice)} twice; export the model again")
    if "" in names:
        raise ModelError(
            f"has {'an' if what[0] in 'aeiou' else 'a'} {what} without a name; export the model again"
        )


def _check_input_type(value: onnx.ValueInfoProto) -> None:
    kind = value.type.WhichOneof("value")
    known = {int(dtype) for dtype in ir.DataType}
    if kind is None or (kind == "tensor_type" and value.type.tensor_type.elem_type not in known - {0}):
        raise ModelError(f"graph input {quoted(value.name)} has no known type; export the model again")


def _check_outputs(body: onnx.GraphProto | onnx.FunctionProto, names: set[str]) -> None:
    given = [output.name if isinstance(output, onnx.ValueInfoProto) else output for output in body.output]
    _check_text(given)
    for name in given:
        if name not in names:
            raise ModelError(f"output {quoted(name)} is produced by nothing; the model is incomplete")


def _check_attribute(attribute: onnx.AttributeProto, what: object) -> None:
    """Check that an attribute has one value, of the type it names; name the type where old files don't."""
    values = [entry.name for entry, _ in attribute.ListFields() if entry.name not in _DESCRIPTIONS]
    if attribute.type == onnx.AttributeProto.UNDEFINED and len(values) == 1:
        attribute.type = _TYPE_OF_FIELD[values[0]]  # files before IR version 2 left types to the reader
    expected = _VALUE_FIELDS.get(attribute.type)
    if expected is None:
        raise ModelError(
            f"{what} has the attribute {quoted(attribute.name)} without a type; export the model again"
        )
    if any(value != expected for value in values) or (values and attribute.ref_attr_name):
        raise ModelError(
            f"{what} has the attribute {quoted(attribute.name)} with a value of another type than it names; "
            "export the model again"
        )
