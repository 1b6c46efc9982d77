"""Real inputs through models: inner values and their statistics, in bounded memory."""
