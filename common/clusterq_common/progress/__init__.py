"""Progress, remarks and results on a terminal."""
