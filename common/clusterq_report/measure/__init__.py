"""Measurements for a page that require the networks."""
