"""How good a set of shards is, told without one real image: docs/shard-quality.md."""
