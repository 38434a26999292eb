"""From classes to images: the generation loop, decoding, editing, and files of samples."""
