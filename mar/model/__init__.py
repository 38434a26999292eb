"""MAR itself: the transformer that turns visible tokens into z, and the masks of its training."""
