"""`logitcache import`: caches that other tools made, and answers of servers that were kept in files."""
