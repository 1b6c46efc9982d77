"""Constants of quantized models."""

from typing import Any

import numpy as np

#: A scale for a whole tensor.
TINY = np.float32(0.02)


def integers(*shape: int, seed: int = 0, dtype: Any = np.int8) -> np.ndarray:
    """Return random numbers over the range of an 8-bit type (of int8 for wider ones)."""
    info = np.iinfo(dtype if np.dtype(dtype).itemsize == 1 else np.int8)
    return np.random.default_rng(seed).integers(info.min, info.max + 1, shape).astype(dtype)


def steps(*shape: int) -> np.ndarray:
    """Return scales that differ."""
    return (0.01 + 0.002 * np.arange(np.prod(shape))).astype(np.float32).reshape(shape)


def random_steps(*shape: int, seed: int = 0) -> np.ndarray:
    """Return scales in no order."""
    return np.random.default_rng(seed).uniform(0.01, 0.04, shape).astype(np.float32)
