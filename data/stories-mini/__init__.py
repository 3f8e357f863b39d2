"""The text demo's stories and teacher; see README.md beside this file."""
