"""Verbs on finished caches: slice, merge, export, verify, fidelity."""
