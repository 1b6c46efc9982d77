"""Reading, writing, viewing and concretising ONNX models."""
