"""ONNX graphs that run in torch, so that gradients reach the tensors of the file; torch is needed for it."""
