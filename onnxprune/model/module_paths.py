"""Which module of the source a node came from, as far as exporters leave traces of that."""

from __future__ import annotations

import re
from collections.abc import Sequence

import onnx_ir as ir

#: The cumulative module paths that torch's exporter writes beside a node.
_SCOPE = re.compile(r"'([^']*\.[^']*)'")


def common_path(nodes: Sequence[ir.Node]) -> str:
    """Return what the module paths of layers have in common; empty if that is nothing."""
    paths = [path for path in map(module_path, nodes) if path]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def module_path(node: ir.Node) -> list[str]:
    """Return the path of the module that a layer belongs to, as far as the exporter left traces of it."""
    for value in node.inputs:
        own = value is not None and value.is_initializer() and len(value.uses()) == 1
        name = str(value.name) if value is not None and own else ""
        if "." in name and not re.search("/|::", name):
            return name.split(".")[:-1]
    scopes = _SCOPE.findall(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
    if scopes:
        return str(max(scopes, key=len)).split(".")
    path = ""
    for part in str(node.name).split("/")[:-1]:  # as in /features/features.1/features.1.0/conv/Conv
        before = path.rpartition("/")[0]
        last = path.rpartition("/")[2]
        path = f"{before}/{part}" if last and part.startswith(f"{last}.") else f"{path}/{part}"
    return [part for part in re.split("[/.]", path) if part]
