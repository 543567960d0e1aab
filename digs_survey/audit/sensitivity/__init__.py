"""What faults of the data would cost a posterior, and how often they would be noticed."""
