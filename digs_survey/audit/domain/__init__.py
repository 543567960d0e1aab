"""Whether the survey as a whole lies in the domain of the simulations."""
