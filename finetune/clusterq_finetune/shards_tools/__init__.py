"""Commands on shard sets: inspect, verify, merge, compare."""
