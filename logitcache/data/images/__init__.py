"""Labelled images: data sets, views and rendering."""
