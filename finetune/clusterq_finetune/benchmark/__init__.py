"""Speed of an exported file beside its float export, in one process."""
