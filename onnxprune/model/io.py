"""Read a model from a file that nobody vouches for, and write one so that it appears whole or not at all.

What a round trip changes, and nothing else: tensors of 1 KiB and more whose data is a list of numbers are
written as ``raw_data``; sparse indices become linear; nodes that stood before their inputs are put in order;
trailing outputs without a name go; tensors below 1 KiB of external data move into the model, offsets within
data files change, ``checksum`` entries go; fields set to their default value are left out; ``value_info`` is
in graph order, and that of values that do not exist, or are graph inputs or outputs, goes; metadata is in the
order of its keys, and of the same key the last is kept; protobuf fields that this version of onnx does not
know go. Training information goes if the shape of an initializer has changed since the model was read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir import serde

from onnxprune.errors import ModelError, OutputError
from onnxprune.messages import root_cause, visible
from onnxprune.model.atomic import NewFile, check_room, check_target
from onnxprune.model.collector import collector_paused
from onnxprune.model.parse import MOST_MODEL_BYTES, parse
from onnxprune.model.places import places
from onnxprune.model.serialize import (
    mark_declared,
    recall,
    remember,
    remember_training,
    serialize,
)
from onnxprune.model.storage import Storage
from onnxprune.model.together import Together

#: From this many bytes of tensors on, a model is written with external data.
INLINE_BYTES = 3 << 29

#: Keys in the meta of a loaded model (and of its graph): names of values that were sparse in the file;
#: paths of the files it was read from; the path that the caller gave; whether any tensor was external.
SPARSE = "onnxprune.sparse"
SOURCE = "onnxprune.source"
PATH = "onnxprune.path"
EXTERNAL = "onnxprune.external"


def load(path: str | os.PathLike[str], *, data_beside: str | os.PathLike[str] | None = None) -> ir.Model:
    """Read a model, checking everything that can be checked without running it.

    Tensors of external data stay in their files and are read each time they are asked for; the others are
    read-only arrays. Weights that are not finite are not looked for. Sparse tensors become dense.

    Args:
        path: an ONNX file.
        data_beside: another file, beside which external data lies, if not beside this one.

    Raises:
        ModelError: the file is missing, damaged, unsafe or not supported; one line.
    """
    with _named(Path(path)):
        parsed = parse(Path(path), None if data_beside is None else Path(data_beside))
        try:
            with collector_paused():
                model = serde.deserialize_model(parsed.proto)
            if not parsed.found.sorted:
                model.graph.sort()
                for function in model.functions.values():
                    function.sort()
        except (serde.SerdeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
            # What onnx_ir raises for models it does not accept; the structure has been checked before.
            raise ModelError(f"{root_cause(error)}; export the model again") from error
        if parsed.found.misused is not None:
            raise parsed.found.misused
        for place in places(model):
            if isinstance(place.tensor, serde.TensorProtoTensor):
                contents = parsed.contents(place.tensor.raw)
                if not isinstance(contents, serde.TensorProtoTensor):
                    place.put(contents)
        mark_declared(parsed.proto, model)
        remember_training(parsed.proto, model)
        remember(model, SPARSE, parsed.sparse)
        remember(model, SOURCE, tuple(str(file) for file in parsed.files))
        remember(model, PATH, os.fspath(path))
        remember(model, EXTERNAL, len(parsed.files) > 1)
        _note_checked(os.path.realpath(path), parsed.files)
        return model


def check(path: str | os.PathLike[str]) -> None:
    """Refuse a model file that `load` refuses, before somebody else reads it by its name.

    Nothing is kept of it but how its files stood; as long as they stand like that, it is not read again.

    Raises:
        ModelError: as `load`.
    """
    if _checked_files(path):
        return
    with _named(Path(path)):
        parsed = parse(Path(path))
        if parsed.found.misused is not None:
            raise parsed.found.misused
    _note_checked(os.path.realpath(path), parsed.files)


def _checked_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files of a model that was found in order and has not changed since; none of others."""
    known = _CHECKED.get(os.path.realpath(path), ())
    unchanged = known == _standing(file for file, *_ in known)
    return tuple(Path(file) for file, *_ in known) if unchanged else ()


#: How the files of models stood when they were found to be in order: path, and what tells versions apart.
_CHECKED: dict[str, tuple[tuple[str, int, int, int, int], ...]] = {}


def checked_bytes(path: str | os.PathLike[str]) -> int:
    """Return the size of the files of a model that was checked."""
    return sum(size for *_, size, _ in _CHECKED.get(os.path.realpath(path), ()))


def pass_on(path: str | os.PathLike[str]) -> list[list[str | int]]:
    """Check a model file; return what lets another process skip that, as long as its files stay as they are.

    Raises:
        ModelError: as `load`.
    """
    check(path)
    return [list(one) for one in _CHECKED[os.path.realpath(path)]]


def take_over(path: str | os.PathLike[str], passed_on: Sequence[Sequence[Any]]) -> None:
    """Take what another process found in order, from `pass_on`, for checked."""
    _CHECKED[os.path.realpath(path)] = tuple((f, d, i, s, t) for f, d, i, s, t in passed_on)


def _note_checked(key: str, files: Iterable[Path]) -> None:
    standing = _standing(str(file) for file in files)
    if standing is not None:
        _CHECKED[key] = standing


def _standing(files: Iterable[str]) -> tuple[tuple[str, int, int, int, int], ...] | None:
    """Return what tells whether files were changed or replaced, None if one is gone."""
    found = []
    try:
        for file in files:
            state = Path(file).lstat()
            found.append((file, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
    except OSError:
        return None
    return tuple(found)


def model_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """Return the files a model consists of: itself, then its data files, without links.

    Raises:
        ModelError: the model can't be read, or a data file is missing or unsafe.
    """
    known = _checked_files(path)
    if known:
        return known
    with _named(Path(path)):
        parsed = parse(Path(path))
    if parsed.found.misused is None and len(parsed.files) == 1:  # others may be reached by links
        _note_checked(os.path.realpath(path), parsed.files)
    return parsed.files


def save(
    model: ir.Model,
    path: str | os.PathLike[str],
    *,
    external_data: bool | None = None,
    sparse_storage: bool | None = None,
    before_commit: Callable[[Path], None] | None = None,
    together: Together | None = None,
) -> tuple[Path, ...]:
    """Write a model. The old file at ``path``, if any, stays as it is until the new one is complete.

    Tensors are written one after the other, straight from where they are; lazy ones are computed when their
    turn comes (twice if they are stored sparse). External data goes into one file beside the model, named
    after its contents, so no earlier model can ever point into it by mistake. A data file that the replaced
    model used is left where it is: others may use it.

    Args:
        model: any model; it is not changed.
        path: the model file.
        external_data: store tensors of 1 KiB and more beside the model; None: if they were when it was
            read, or if all tensors together exceed 1.5 GiB.
        sparse_storage: store every float weight sparse for which this takes less space; None: those that were
            sparse when it was read; False: none. Shape inference and the full checker of onnx refuse some
            valid sparse models; ONNX Runtime reads them all, and makes them dense.
        before_commit: is called with the finished temporary model file, in the folder it stays in, so that
            external data resolves; if it raises, nothing is written.
        together: what else appears with the model, or not at all.

    Returns:
        The files that were written: the model, and its data file if there is one.

    Raises:
        OutputError: the path can't or must not be written (it is one of the model's own input files).
        ModelError: the model can't be written as it is, or a data file it is read from has changed.
    """
    target = Path(path)
    check_target(target)
    _refuse_inputs(model, target)
    sparse_names: frozenset[str] = recall(model, SPARSE) or frozenset()
    kept_sparse = sparse_names if sparse_storage is None else frozenset()
    with _named(target):
        storage = Storage(serialize(model, kept_sparse.__contains__), target)
        storage.make_sparse(kept_sparse, past_break_even=bool(sparse_storage))
    if external_data is None:
        external_data = bool(recall(model, EXTERNAL)) or storage.size_bytes() > INLINE_BYTES
    check_room(target, storage.size_bytes())
    with contextlib.ExitStack() as stack:
        together = together or stack.enter_context(Together())
        with _named(target):
            data = storage.write_external(together) if external_data else None
        size = storage.file_bytes()
        if size > MOST_MODEL_BYTES:
            raise OutputError(
                f"{visible(target)}: {size} bytes are too many for one ONNX file (2 GiB); use external data"
            )
        with NewFile(target) as file:
            with _named(target):
                storage.write_model(file.stream)
            file.finish()
            if before_commit is not None:
                before_commit(file.temporary)
            together.place_rest()
            together.place(file)
    return (target,) if data is None else (target, data)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the model's name in front of messages about it.

    Raises:
        ModelError: in place of any, and when memory runs out.
    """
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{visible(path)}: {error}") from error
    except MemoryError as error:
        raise ModelError(
            f"{visible(path)}: needs more memory than there is; store it with external data"
        ) from error


def _refuse_inputs(model: ir.Model, target: Path) -> None:
    """Refuse to write over a file that the model was read from, under whatever name.

    Raises:
        OutputError: the target is such a file.
    """
    for source in recall(model, SOURCE) or ():
        if target.exists() and os.path.exists(source) and os.path.samefile(target, source):  # noqa: PTH110, PTH121
            raise OutputError(
                f"{visible(target)}: is an input of this model; inputs are never changed: name another file"
            )
