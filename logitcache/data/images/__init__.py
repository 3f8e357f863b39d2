"""Labelled images: where they come from, how a batch of them is rendered in a view."""
