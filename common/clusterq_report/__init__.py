"""Reports on run folders and shard sets, as self-contained HTML pages."""
