"""Models run, and learn, in torch: a graph becomes a torch module whose parameters are its weights.

Raises:
    MissingExtra: at import; torch is not installed.
"""

from onnxprune.errors import require_extra

require_extra("what needs gradients", "torch", "torch")
