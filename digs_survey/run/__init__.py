"""A run directory: its stages, what may be reused, its lock, and what can be asked of it."""
