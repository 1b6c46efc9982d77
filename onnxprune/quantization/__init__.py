"""Numbers of fewer bits: what a model needs before, which layers stay in float, and the shortest form after."""
