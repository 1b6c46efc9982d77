"""Repair of pruned models from unlabelled samples, in closed form."""

from onnxprune.recover.walk import METHODS, Repaired, RepairedLayer, repair

__all__ = ["METHODS", "Repaired", "RepairedLayer", "repair"]
