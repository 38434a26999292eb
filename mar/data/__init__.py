"""Images: where they come from, which there are, and how they become batches of square tensors."""
