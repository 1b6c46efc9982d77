"""Latency, memory and accuracy, measured."""
