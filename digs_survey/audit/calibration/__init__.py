"""Calibration on independent simulations: ranks, coverage, TARP, planted faults, recalibration."""
