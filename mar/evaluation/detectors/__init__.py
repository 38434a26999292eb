"""Detectors of photographs for GenEval: objects by Mask2Former, colours by CLIP."""
