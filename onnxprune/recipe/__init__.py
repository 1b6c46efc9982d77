"""Recipes: what a run of the whole pipeline shall do, as a file."""
