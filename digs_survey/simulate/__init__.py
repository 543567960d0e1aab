"""Prior draws, their noiseless spectra on Dask, and the survey's noise."""
