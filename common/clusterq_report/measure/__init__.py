"""Measurements that a page shows and that need the networks."""
