"""What a tokenizer makes of images: their posterior, their cache on the disk, their scale."""
