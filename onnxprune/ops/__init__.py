"""One file per family of operators: everything the tool knows about those operators."""
