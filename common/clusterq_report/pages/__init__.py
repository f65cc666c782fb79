"""Pages of each kind of run, from what its folder says."""
