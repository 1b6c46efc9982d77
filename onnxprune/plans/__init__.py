"""Plans on disk, on other models, and side by side."""

from onnxprune.plans.drift import Drift, DriftRow, compare_plans
from onnxprune.plans.files import has_masks, load_plan, save_plan

__all__ = ["Drift", "DriftRow", "compare_plans", "has_masks", "load_plan", "save_plan"]
