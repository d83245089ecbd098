"""Vector search in one shard: graphs, exact search, the load check. Knows no release and no store."""
