"""The survey's noise: drawn on simulations, and assumed by every likelihood."""
