"""Emission of shards: candidates, their acceptance by the teacher, and the shard files."""
