"""Decoders of a billion parameters: written, pruned, measured, and what that says of larger ones."""
