"""A run on disk: its folder, settings, checkpoints, metrics and environment."""
