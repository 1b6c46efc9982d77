"""onnxprune: make a trained ONNX model smaller and faster, and prove it."""
