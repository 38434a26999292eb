"""Images that a manifest lists: how they are read and become batches of square tensors."""
