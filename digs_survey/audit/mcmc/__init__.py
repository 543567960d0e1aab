"""emcee on single galaxies, and how its posteriors compare with the neural ones."""
