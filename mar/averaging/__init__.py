"""Weights averaged over a training by a power of the step, and other averages rebuilt from them."""
