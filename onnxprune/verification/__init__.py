"""What a saved file claims to be, checked on the file itself."""

from onnxprune.verification.report import verify

__all__ = ["verify"]
