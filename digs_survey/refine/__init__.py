"""Better posteriors for rows whose neural posterior is not trusted."""
