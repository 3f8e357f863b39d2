"""`logitcache import`: convert other tools' caches and saved server responses."""
