"""Log records, progress on the terminal, and the command line as it may be logged."""
