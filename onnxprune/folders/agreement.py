"""Do files that hold the same weights lose the same of them?

A decoder that keeps a cache is often exported twice: for the first token, and for those that follow. Both
files hold the same weights, and the second goes on with what the first has put into the cache. Were they
pruned differently, a text would be begun by one network and continued by another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxprune.errors import UsageError
from onnxprune.messages import quoted
from onnxprune.model.storage import write_tensor
from onnxprune.model.stored import stored_values, tensor_of
from onnxprune.types import Plan

#: How the outputs that hand on a cache are called by those who export them.
_CACHE = "present"


@dataclass(frozen=True, slots=True)
class Lost:
    """What a file loses of each weight that it could share.

    Attributes:
        names: of weights, by the digest of their contents.
        parts: what goes, by digest and axis; -1 stands for no axis: a mask, or the whole.
    """

    names: Mapping[str, str]
    parts: Mapping[tuple[str, int], bytes]


def keeps_cache(model: ir.Model) -> bool:
    """Tell whether a model hands on a cache to its next run, or to another model's."""
    return any(str(value.name).startswith(_CACHE) for value in model.graph.outputs)


def what_is_lost(model: ir.Model, plan: Plan | None) -> Lost:
    """Return what a plan takes of the weights of a model, by their contents.

    Args:
        model: as it was.
        plan: None where nothing goes.
    """
    names = {}
    for name, values in stored_values(model).items():
        tensors = {id(tensor_of(value)): tensor_of(value) for value in values}
        if len(tensors) == 1:
            (tensor,) = tensors.values()
            if len(tensor.shape) > 1 and tensor.dtype.is_floating_point():
                names[name] = _digest(tensor)
    single = {digest for digest, count in Counter(names.values()).items() if count == 1}
    parts = {}
    for tensor_name, axis, removed in () if plan is None else _parts(plan):
        digest = names.get(tensor_name)
        if digest in single:
            parts[digest, axis] = removed
    return Lost({digest: name for name, digest in names.items() if digest in single}, parts)


def _digest(tensor: ir.TensorProtocol) -> str:
    digest = hashlib.sha256(repr((int(tensor.dtype), tuple(tensor.shape.numpy()))).encode())
    write_tensor(tensor, digest.update)
    return digest.hexdigest()


def _parts(plan: Plan) -> Iterator[tuple[str, int, bytes]]:
    """Yield what goes of each tensor: its name, the axis, and the positions in some form that compares."""
    for group in plan.groups:
        for member in group.members:
            if len(member.removed):
                yield member.tensor, member.axis, member.removed.tobytes()
        for number, branch in enumerate(group.branches):
            if number in group.removed:
                yield from ((weight, -1, b"all") for weight in branch.weights)
    for name, mask in plan.masks.items():
        yield name, -1, mask.bits.tobytes()


def check_agree(lost: Mapping[str, Lost]) -> None:
    """Refuse files that share a weight and lose different parts of it.

    Args:
        lost: of each file that keeps a cache, by its name.

    Raises:
        UsageError: naming two files, and a weight.
    """
    files = list(lost.items())
    for number, (name, mine) in enumerate(files):
        for other_name, others in files[number + 1 :]:
            for digest in mine.names.keys() & others.names.keys():
                for axis in {key[1] for key in (*mine.parts, *others.parts) if key[0] == digest}:
                    if mine.parts.get((digest, axis)) != others.parts.get((digest, axis)):
                        raise UsageError(
                            f"{name} and {other_name} share a cache and the weight "
                            f"{quoted(mine.names[digest])}, and would lose different parts of it: give "
                            "--amount and a score of the weights (l2), which decide the same for both"
                        )
