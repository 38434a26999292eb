"""Scores: feature extractors, reference statistics, FID and its kin, reconstruction metrics."""
