"""Folders of models that are run together, such as those that Hugging Face Optimum exports."""
