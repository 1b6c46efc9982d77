"""Pruning little by little while a model is tuned: in one run or in rounds, with earlier weights too."""
