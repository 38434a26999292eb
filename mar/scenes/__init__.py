"""Scenes of coloured digits, and what an image of a prompt must show."""
