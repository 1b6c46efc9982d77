"""Importance scores of channels and of weights."""
