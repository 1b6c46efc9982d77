"""Numbers of fewer bits: what a model needs before, which layers stay in float, the shortest form after."""
