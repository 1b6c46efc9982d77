"""What a recipe names as its model -> an ONNX file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from onnxprune.compression.folder import RunFolder, Work
from onnxprune.compression.stages import MODEL_FILE
from onnxprune.compression.told import Told
from onnxprune.importers import import_model
from onnxprune.model.digest import sha256_of
from onnxprune.model.io import save
from onnxprune.recipe.schema import Recipe


def import_original(recipe: Recipe, folder: RunFolder, told: Told) -> tuple[Path, list[str]]:
    """Return the ONNX file of a recipe's model, which is exported into the run folder if need be, and notes.

    Code of the user's (``module:factory``) is exported at every run, for nobody can say what it depends on;
    what follows is then reused where the export is the same.

    Raises:
        ImporterError, ModelError, MissingExtra: as `onnxprune.import_model`.
    """
    source = recipe.model.path
    if Path(source).suffix.lower() == ".onnx":
        return Path(source), []
    told.step(f"importing {source}")
    options = recipe.model.options.model_dump()
    path = Path(source)
    contents = sha256_of(path) if path.is_file() else f"imported at {time.time_ns()}"

    def make(work: Work) -> dict[str, Any]:
        # load_recipe has refused sources that run code unless the user trusts them
        found = import_model(source, **options, trust_input_code=True, seed=recipe.run.seed)
        save(found.model, work.place / MODEL_FILE)
        return {"notes": list(found.notes)}

    result = folder.result({"import": options, "seed": recipe.run.seed, "source": contents}, make)
    return result.folder / MODEL_FILE, list(result.about["notes"])
