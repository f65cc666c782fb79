"""Candidates, the teacher's judgement on them, and the shards they become."""
