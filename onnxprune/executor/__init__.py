"""Models run, and learn, in torch: a prepared graph becomes a torch module whose parameters are its weights."""
