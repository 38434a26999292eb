"""Models of one token's distribution given z: diffusion, flow, cross-entropy, L2."""
