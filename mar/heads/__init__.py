"""Models of one token's distribution given z: diffusion, flow, energy score, cross-entropy, L2."""
