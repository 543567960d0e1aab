"""Stellar populations, and galaxy spectra made of them through Prospector."""
