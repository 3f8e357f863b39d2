"""`logitcache train`: train a student from a cache, beside a live teacher, or from labels alone."""
