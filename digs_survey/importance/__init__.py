"""The likelihood of spectra, importance weights of posterior draws, and predictive checks."""
