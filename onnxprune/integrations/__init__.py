"""Parts that other toolchains load: each imports a package that onnxprune itself does without."""
