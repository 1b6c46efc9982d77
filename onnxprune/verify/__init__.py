"""What a saved file claims to be, checked on the file itself."""

from onnxprune.verify.report import verify

__all__ = ["verify"]
