"""Output on a terminal: progress, remarks and results."""
