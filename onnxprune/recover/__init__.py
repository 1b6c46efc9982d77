"""Repair of pruned models from unlabelled samples, in closed form."""
