"""Text: contexts of tokens, in which each target token is one row."""
