"""What is in a folder: models, the data files that they refer to, and everything else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from onnxprune.errors import ModelError, OutputError, UsageError
from onnxprune.messages import one_line, quoted, visible
from onnxprune.model.io import model_files


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a folder, by their paths within it, in the order of their names.

    Attributes:
        folder: without links.
        models: to prune.
        others: what is carried along: models that are left as they are among them.
        data: for each model, the files that its weights are in.
    """

    folder: Path
    models: tuple[PurePath, ...]
    others: tuple[PurePath, ...]
    data: dict[PurePath, frozenset[PurePath]]

    def carried(self, pruned: Sequence[PurePath]) -> list[PurePath]:
        """Return what is copied if these models are pruned: data that only they use is not."""
        copied = [model for model in self.data if model not in pruned]
        needed = frozenset[PurePath]().union(*(self.data[model] for model in copied))
        replaced = frozenset[PurePath]().union(*(self.data[model] for model in pruned)) - needed
        left = [model for model in self.models if model not in pruned]
        return sorted({*left, *self.others} - replaced)


def look_into(folder: str | Path, only: Sequence[str] = ()) -> Contents:
    """Return what is in a folder and the folders in it.

    Args:
        folder: of an export.
        only: globs over the names of models, or their paths within the folder; the others are carried along.

    Raises:
        ModelError: there is no such folder, no model in it, a model is damaged, or a link leads out of it.
        UsageError: a glob fits no model.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ModelError(f"{visible(root)}: is no folder")
    root = root.resolve()
    found = []
    for place, folders, names in os.walk(root, onerror=_fail):
        for name in [*names, *folders]:
            path = Path(place, name)
            if path.is_symlink():
                _check_link(path, root)
        found += [PurePath(os.path.relpath(Path(place, name), root)) for name in names]
    found.sort()
    all_models = [path for path in found if path.suffix.lower() == ".onnx"]
    if not all_models:
        raise ModelError(f"{visible(folder)}: holds no .onnx file")
    wanted = _chosen(all_models, only)
    return Contents(
        root,
        tuple(wanted),
        tuple(path for path in found if path not in wanted),
        {model: _data_files(root, model) for model in all_models},
    )


def check_apart(folder: Path, output: Path) -> None:
    """Refuse an output within the input, or around it.

    Raises:
        OutputError: likewise.
    """
    given, wanted = folder.resolve(), output.resolve()
    if given == wanted or given in wanted.parents or wanted in given.parents:
        raise OutputError(
            f"{visible(output)}: is, holds or lies in the input {visible(folder)}; choose another"
        )


def _fail(error: OSError) -> None:
    raise ModelError(f"{visible(error.filename)}: can't be read: {error.strerror}") from error


def _check_link(path: Path, root: Path) -> None:
    """Refuse a link to a folder, or out of the folder: what it leads to is not part of what was given."""
    target = path.resolve()
    if target.is_dir() or root not in target.parents:
        raise ModelError(
            f"{visible(path)}: is a link that leads to a folder or out of {visible(root)}; "
            "copy the folder with what its links lead to first (cp -rL)"
        )


def _chosen(models: Sequence[PurePath], only: Sequence[str]) -> list[PurePath]:
    for glob in only:
        if not any(_fits(model, glob) for model in models):
            names = ", ".join(model.as_posix() for model in models)
            raise UsageError(f"{quoted(glob)} fits no model of the folder: {one_line(names)}")
    return [model for model in models if not only or any(_fits(model, glob) for glob in only)]


def _fits(model: PurePath, glob: str) -> bool:
    return fnmatchcase(model.as_posix(), glob) or fnmatchcase(model.name, glob)


def _data_files(root: Path, model: PurePath) -> frozenset[PurePath]:
    files = model_files(root / model)[1:]
    return frozenset(PurePath(os.path.relpath(file, root)) for file in files)
