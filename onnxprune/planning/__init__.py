"""Wishes -> plans: what goes, decided before anything is changed."""
