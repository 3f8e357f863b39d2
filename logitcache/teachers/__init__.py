"""The teacher's forward pass."""
