"""What the budget of time is worth, measured: see README.md."""
