"""Better posteriors than the map gave: of rows with a low agreement, and of a finished run under another prior."""
