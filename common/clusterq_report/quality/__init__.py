"""Quality of a shard set: measurements, verdicts and their page."""
