"""A model, data and settings -> the same graph with better weights, masks held throughout.

One of the few places that use torch; nothing here imports it before a model is tuned.
"""

from onnxprune.tuning.control import Control, Standing
from onnxprune.tuning.settings import Tuning

__all__ = ["Control", "Standing", "Tuning"]
