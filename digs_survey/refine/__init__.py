"""Better posteriors than the map gave: of rows with a low agreement, under another prior, and of a population."""
