"""How the generator is trained: one optimiser step, and the steps on cached latents."""
