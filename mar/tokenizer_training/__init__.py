"""How a tokenizer is trained: its losses, LPIPS, the discriminator, the optimiser steps."""
