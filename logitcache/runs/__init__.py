"""Runs: the directory of one, its logs, many of them, and how they compare (no torch)."""
