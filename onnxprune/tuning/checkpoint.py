"""The whole state of a run in one file, which is replaced as a whole.

The file is what ``torch.save`` writes of tensors and plain values, and is read without unpickling anything
else (``weights_only``). It says which run it belongs to: digests of models and data, and all settings. What
was read is used only if it is, bit by bit, what was written.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onnxprune.containment.holding import claim_folder, let_go
from onnxprune.errors import OutputError, TuningError
from onnxprune.messages import one_line, visible
from onnxprune.model.atomic import NewFile, check_target, output_errors
from onnxprune.reading import opened
from onnxprune.types import Mask

#: The file in a checkpoint's folder.
FILE = "state.pt"

_FORMAT = 2


def open_folder(folder: Path, *, resume: bool) -> None:
    """Make the folder of a checkpoint, before long work.

    Raises:
        OutputError: it can't be made, or holds a checkpoint that would be replaced without being used.
    """
    with output_errors(folder):
        folder.mkdir(exist_ok=True)
    check_target(folder / FILE)
    if (folder / FILE).exists() and not resume:
        raise OutputError(
            f"{visible(folder)}: holds a checkpoint already; --resume goes on from it, or name another folder"
        )


@contextlib.contextmanager
def claimed(folder: Path | None) -> Iterator[None]:
    """Keep the folder of a checkpoint from other runs while the block runs.

    Raises:
        OutputError: another run has it.
    """
    if folder is None:
        yield
        return
    try:
        with output_errors(folder):
            descriptor = claim_folder(folder)
    except OutputError as error:
        if isinstance(error.__cause__, BlockingIOError):
            raise OutputError(
                f"{visible(folder)}: another run keeps its checkpoints here; wait for it, or name another one"
            ) from None
        raise
    try:
        yield
    finally:
        let_go(descriptor)


def save(folder: Path, run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one before it stays until the new one is complete.

    Args:
        folder: must exist.
        run: what identifies the run, plain values.
        state: tensors, numpy arrays, masks and plain values, nested.

    Raises:
        OutputError: it can't be written.
    """
    target = folder / FILE
    packed = {"format": _FORMAT, "run": _packed(dict(run)), "state": _packed(dict(state))}
    contents = {**packed, "check": _digest(packed)}
    with NewFile(target) as file:
        with output_errors(target):
            torch.save(contents, file.stream)
        file.finish()
        file.commit()


def load(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of a checkpoint, on the CPU; None if there is none.

    Raises:
        TuningError: the file is damaged, or belongs to another run; the first difference is named.
    """
    path = folder / FILE
    if not path.exists():
        return None
    with opened(path, TuningError):  # a pipe would be waited for
        pass
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
        version, check = contents["format"], contents.pop("check", None)
        sound = version != _FORMAT or check == _digest(contents)
        of, state = _unpacked(contents["run"]), _unpacked(contents["state"])
    except (
        OSError,
        RuntimeError,
        EOFError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        reason = one_line(error)
        raise TuningError(f"{visible(path)}: is no sound checkpoint ({reason}); remove it") from error
    if not sound:
        raise TuningError(f"{visible(path)}: is no sound checkpoint (not what was written); remove it")
    if version != _FORMAT:
        raise TuningError(f"{visible(path)}: has format {version}, this version reads {_FORMAT}; start anew")
    for name in {**run, **of}:
        if of.get(name) != run.get(name):
            raise TuningError(
                f"{visible(folder)}: the checkpoint was made with {name} {_short(of.get(name))}, now it is "
                f"{_short(run.get(name))}; give the same again, or start anew in another folder"
            )
    return dict(state)


def _digest(packed: Any) -> str:
    """Return the SHA-256 of plain values and tensors, nested."""
    digest = hashlib.sha256()

    def update(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)} ".encode())
            for pair in value.items():
                update(pair)
        elif isinstance(value, (list, tuple)):
            digest.update(f"{type(value).__name__} {len(value)} ".encode())
            for item in value:
                update(item)
        else:
            digest.update(f"{type(value).__name__} {value!r} ".encode("utf-8", "surrogatepass"))

    update(packed)
    return digest.hexdigest()


def _short(value: Any) -> str:
    text = one_line(value, 60)
    return text[:12] if isinstance(value, str) and len(value) == 64 else text  # a digest


def _packed(value: Any) -> Any:
    """Replace what ``weights_only`` refuses by tensors and plain values that say what they were."""
    if isinstance(value, Mask):
        return {"mask": list(value.shape), "bits": torch.from_numpy(value.bits)}
    if isinstance(value, np.ndarray):
        return {"array": torch.from_numpy(np.ascontiguousarray(value).copy())}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {"items": [(_packed(key), _packed(item)) for key, item in value.items()]}
    if isinstance(value, tuple):
        return tuple(_packed(item) for item in value)
    return [_packed(item) for item in value] if isinstance(value, list) else value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        if "mask" in value:
            return Mask(tuple(value["mask"]), value["bits"].numpy())
        if "array" in value:
            return value["array"].numpy()
        return {_unpacked(key): _unpacked(item) for key, item in value["items"]}
    if isinstance(value, tuple):
        return tuple(_unpacked(item) for item in value)
    return [_unpacked(item) for item in value] if isinstance(value, list) else value
