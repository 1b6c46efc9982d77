"""Repair of pruned models from unlabelled samples, in closed form."""

from onnxprune.recover.repair import Repaired, RepairedLayer, repair

__all__ = ["Repaired", "RepairedLayer", "repair"]
