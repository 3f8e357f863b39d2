"""Generate completions of prompts with a trained student or a teacher, and compare them with references."""
