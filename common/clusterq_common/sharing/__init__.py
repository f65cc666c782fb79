"""Sets of shards at addresses: fetched, kept, sent, signed. Free of torch."""
