"""A model as files that can travel: its own, if they lie as it says, or a copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxprune.errors import ModelError
from onnxprune.messages import visible
from onnxprune.model.digest import structure_digest, weights_digest
from onnxprune.model.io import load, model_files, save
from onnxprune.model.places import places
from onnxprune.workers.files import Files


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model below the folder of some files.

    Attributes:
        name: of its file.
        shown: what messages call it.
        digests: of its structure and of its weights, as they were when it was decided what happens to it.
    """

    name: str
    shown: str
    digests: tuple[str, str]

    def load(self, folder: Path) -> ir.Model:
        """Read the model.

        Raises:
            ModelError: it can't be read, or is not what it was.
        """
        model = load(folder / self.name)
        if (structure_digest(model), weights_digest(model)) != self.digests:
            raise ModelError(f"{self.shown}: the file changed while it was in use; run it again")
        return model


def model_as_files(model: ir.Model, path: Path | None, folder: Path) -> tuple[Files, ModelName]:
    """Return the files of a model.

    Args:
        model: as it was read.
        path: where from; None if that is not known.
        folder: an empty folder for a copy, where one is needed.

    Raises:
        ModelError, OutputError: the model can't be read again, or written.
    """
    digests = (structure_digest(model), weights_digest(model))
    if path is not None and (found := _plain(model, path)) is not None:
        return found, ModelName(path.name, visible(path), digests)
    folder.mkdir(exist_ok=True)
    copy = folder / "model.onnx"
    save(model, copy)
    return Files.of_folder(folder), ModelName(
        copy.name, "the model" if path is None else visible(path), digests
    )


def _plain(model: ir.Model, path: Path) -> Files | None:
    """Return the files of a model; None where links lead to them, whose names nobody else could follow."""
    folder = path.absolute().parent
    names = {path.name}
    names |= {str(p.tensor.location) for p in places(model) if isinstance(p.tensor, ir.ExternalTensor)}
    if {folder / name for name in names} != set(model_files(path)):
        return None
    return Files(folder, tuple(sorted(Path(name).as_posix() for name in names)))
