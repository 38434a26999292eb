"""Scenes of coloured digits: what they show, how it is said, and how they are drawn."""
