"""Repair of pruned models from unlabelled samples, in closed form."""

from onnxprune.recover.walk import Repaired, RepairedLayer, repair

__all__ = ["Repaired", "RepairedLayer", "repair"]
