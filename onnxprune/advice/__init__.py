"""What to do with a model on this machine, and why: measured, not guessed. `onnxprune.advise` is in `run`."""
