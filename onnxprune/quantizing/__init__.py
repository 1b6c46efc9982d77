"""Giving a model fewer bits: what users call (`run`), each form, the choice of layers, and who judges it."""
