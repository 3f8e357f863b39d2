"""Completions of prompts by a trained student or a teacher, and how they compare with references."""
