"""Plans applied to models: cut what shrinks, mask what becomes zero."""
