"""From images to latents and back: one file for each kind, behind one interface."""
