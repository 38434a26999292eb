"""Masked autoregressive image generation with the Diffusion Loss."""
