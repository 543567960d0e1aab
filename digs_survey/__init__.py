"""Calibrated posteriors of the stellar populations of whole spectroscopic surveys."""

__version__ = "0.1.0"
