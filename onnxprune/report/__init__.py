"""One report -> a table, JSON."""
