"""Captions and prompts: from text to what a generator is given."""
