"""What a saved file claims to be, checked on the file itself."""

from onnxprune.verification.report import verify, verify_and_keep

__all__ = ["verify", "verify_and_keep"]
