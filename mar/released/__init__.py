"""Weights that others published: read safely, names translated, shapes checked."""
