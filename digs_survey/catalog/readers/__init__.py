"""Readers of surveys' files: each yields spectra, and one place brings them to a common grid and writes the catalog."""
