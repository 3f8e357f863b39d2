"""Text: contexts of tokens, of which each target token is one row."""
