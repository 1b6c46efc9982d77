"""New contents for weights that are being tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from onnxprune.executor.module import OnnxModule


def put_values(module: OnnxModule, values: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays into trained weights, in place; what an optimizer remembers of them stays.

    Args:
        module: what is tuned.
        values: by stored name, in the shapes that are stored.
    """
    trained = module.trained
    with torch.no_grad():
        for name, array in values.items():
            trained[name].copy_(torch.from_numpy(np.asarray(array, np.float32)))
