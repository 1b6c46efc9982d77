"""Repair of pruned models from unlabelled samples, in closed form."""

from onnxprune.recover.rows import METHODS
from onnxprune.recover.walk import Repaired, RepairedLayer, repair

__all__ = ["METHODS", "Repaired", "RepairedLayer", "repair"]
