"""Better posteriors for rows whose neural posterior probably does not agree with the exact one."""
