"""`logitcache train`: train a student from a cache, with a live teacher, or on labels alone."""
