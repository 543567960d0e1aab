"""Normalising flows: built for sbi, and sampled and evaluated from plain arrays."""
