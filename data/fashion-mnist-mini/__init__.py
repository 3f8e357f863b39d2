"""The demo's images and teacher; see README.md beside this file."""
