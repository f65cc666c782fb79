"""Leakage of a shard set: what its images reveal of the training images, measured beside held-out ones."""
