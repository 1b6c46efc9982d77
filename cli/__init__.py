"""The onnxprune command: thin shells over the Python API."""
