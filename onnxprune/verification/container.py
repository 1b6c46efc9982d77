"""What can be said of a file without its weights: valid, same interface, no larger than its contents."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir

from onnxprune.containment import describe_crash
from onnxprune.messages import one_line
from onnxprune.model.external import FileTensor
from onnxprune.model.functions import without_functions
from onnxprune.model.inputs import graph_inputs
from onnxprune.model.io import SOURCE, SPARSE, load
from onnxprune.model.places import bodies
from onnxprune.model.serialize import recall
from onnxprune.model.skeleton import hollow, skeleton
from onnxprune.model.stored import all_nodes, stored_values, tensor_of
from onnxprune.types import Check

#: A model of gigabytes is checked in seconds; a checker that takes this long hangs.
_CHECKER_SECONDS = 300

#: Writers align external tensors to pages, at most to 64 KiB.
_ALIGNMENT_BYTES = 1 << 16

#: What a file may be larger than its original: names and metadata that tools add.
_GROWTH = 0.01
_GROWTH_BYTES = 1 << 14
_NAME_BYTES = 32  # of a node that had no name, with its tag

# In a process of its own, because onnx's checker is C++ that can crash on damaged files.
_CHECKER = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
import onnx.checker
try:
    onnx.checker.check_model(sys.argv[1])
except Exception as error:
    print(str(error), file=sys.stderr)
    raise SystemExit(1)
"""


def checker_complaint(path: Path) -> str | None:
    """Return what onnx's checker says against a model file, None if it has no objection.

    It refuses links, which is how the cache of Hugging Face is made, and which have been checked by then: it
    is shown the graph alone where there are some.
    """
    complaint = None if path.is_symlink() else _complaint(path)
    if not path.is_symlink() and (complaint is None or "symbolic link" not in complaint):
        return complaint
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        bare = Path(folder, "graph.onnx")
        bare.write_bytes(hollow(load(path)).SerializeToString())
        return _complaint(bare)


def _complaint(path: Path) -> str | None:
    import_path = json.dumps([entry for entry in sys.path if entry])  # never the current folder
    command = [sys.executable, "-I", "-c", _CHECKER, str(path.resolve()), import_path]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_CHECKER_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"onnx's checker did not finish within {_CHECKER_SECONDS} s"
    if done.returncode < 0:
        return f"onnx's checker did not come back: {describe_crash(-done.returncode, done.stderr)}"
    return one_line(done.stderr) if done.returncode else None


def check_checker(path: Path, against: Path | None) -> Check:
    """Check that onnx's checker accepts the file, or has the same to say against the original."""
    complaint = checker_complaint(path)
    if complaint is None:
        return Check("onnx checker", True, "no objection")
    if against is not None and checker_complaint(against) == complaint:
        return Check("onnx checker", True, f"the same objection as to the original: {complaint}")
    return Check("onnx checker", False, complaint)


def check_interface(model: ir.Model, original: ir.Model) -> Check:
    """Check that inputs and outputs have the same names, types and shapes in the same order."""
    differences = [
        *_differences("input", graph_inputs(original), graph_inputs(model), exact=True),
        *_differences("output", original.graph.outputs, model.graph.outputs, exact=False),
    ]
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        return Check("interface", False, differences[0] + more)
    inputs, outputs = len(graph_inputs(model)), len(model.graph.outputs)
    return Check("interface", True, f"{inputs} inputs and {outputs} outputs as in the original")


def _differences(
    kind: str, before: Sequence[ir.Value], after: Sequence[ir.Value], *, exact: bool
) -> Iterator[str]:
    names_before, names_after = [str(v.name) for v in before], [str(v.name) for v in after]
    if names_before != names_after:
        yield f"{kind}s were {', '.join(names_before)}; they are {', '.join(names_after)}"
        return
    for old, new in zip(before, after, strict=True):
        if old.type != new.type:
            yield f"{kind} {old.name!r} was {_type(old)}, is {_type(new)}"
        elif not _same_shape(old.shape, new.shape, exact=exact):
            yield f"{kind} {old.name!r} was {_shape(old.shape)}, is {_shape(new.shape)}"


def _type(value: ir.Value) -> str:
    return "of unknown type" if value.dtype is None else value.dtype.name.lower()


def _dims(shape: ir.Shape) -> list[int | str | None]:
    return [dim if isinstance(dim, int) else dim.value for dim in shape]


def _shape(shape: ir.Shape | None) -> str:
    return "of unknown rank" if shape is None else str(_dims(shape)).replace("None", "?")


def _same_shape(old: ir.Shape | None, new: ir.Shape | None, *, exact: bool) -> bool:
    """Compare shapes; where nothing was declared of an output, what is declared now does no harm."""
    if old is None or new is None:
        return old is new or (old is None and not exact)
    if len(old) != len(new):
        return False
    pairs = zip(_dims(old), _dims(new), strict=True)
    return all(before == after or (before is None and not exact) for before, after in pairs)


def check_unused(model: ir.Model, original: ir.Model | None) -> Check:
    """Check that every initializer is read by something (or was as useless in the original)."""
    excused = set() if original is None else set(_unused(original))
    unused = [name for name in _unused(model) if name not in excused]
    if unused:
        more = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
        return Check("no unused weights", False, f"{unused[0]!r} is stored and read by nothing{more}")
    return Check("no unused weights", True, "everything that is stored is read")


def _unused(model: ir.Model) -> Iterator[str]:
    for body in bodies(model):
        for name, value in () if isinstance(body, ir.Function) else body.initializers.items():
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                yield name


def file_bytes(model: ir.Model) -> int:
    """Return the bytes of all files that a loaded model was read from."""
    return sum(Path(name).stat().st_size for name in recall(model, SOURCE) or ())


def check_size(model: ir.Model, original: ir.Model | None, tensors: Sequence[int]) -> Check:
    """Check that data files hold nothing but tensors, and that the files did not grow.

    Args:
        model: from a file.
        original: likewise.
        tensors: bytes of all tensors of the one, and of the other where there is one.
    """
    detail = _why_wasteful(model)
    if detail is not None:
        return Check("file size", False, detail)
    size = file_bytes(model)
    if original is None:
        return Check("file size", True, f"{size} bytes on disk; {tensors[0]} bytes of tensors")
    # An original that stores its tensors sparsely may be smaller than the same model stored densely.
    before = max(file_bytes(original), tensors[1])
    if original.functions and not model.functions:  # each call has become the nodes of its function
        before += skeleton(without_functions(original)).proto.ByteSize()
    nameless = sum(not node.name for node in all_nodes(original)) - sum(
        not node.name for node in all_nodes(model)
    )
    fits = size <= before * (1 + _GROWTH) + _GROWTH_BYTES + _NAME_BYTES * max(nameless, 0)
    return Check("file size", fits, f"{size} bytes on disk; the original has {before}")


def _why_wasteful(model: ir.Model) -> str | None:
    """Return what is wrong with a data file that holds more than its tensors."""
    if recall(model, SPARSE):
        return None  # sparse tensors are dense once they are read: where they lay is no longer known
    ranges: dict[str, set[tuple[int, int]]] = {}
    for values in stored_values(model).values():
        for tensor in map(tensor_of, values):
            if isinstance(tensor, FileTensor):
                ranges.setdefault(tensor.file.path, set()).add((tensor.offset or 0, tensor.nbytes))
    _, *data_files = recall(model, SOURCE) or ("",)
    for name in data_files:
        size, used = Path(name).stat().st_size, ranges.get(name, set())
        tensors = sum(length for _, length in used)
        if size > tensors + _ALIGNMENT_BYTES * (len(used) + 1):
            return f"{Path(name).name} has {size} bytes, its tensors take {tensors}; write the model anew"
    return None
