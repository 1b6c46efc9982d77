"""Scores and a budget -> what goes."""
