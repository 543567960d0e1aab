"""Checks of a frozen posterior: against emcee, against simulations, against the data, and its cost."""
