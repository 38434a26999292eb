"""Files on the disk: written whole or not at all, tensors with a description, published weights."""
