"""Applying the frozen posterior to every row of a catalog."""
