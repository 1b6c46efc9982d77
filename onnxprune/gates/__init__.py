"""What a compressed model must be to be accepted: asked, measured and judged."""
