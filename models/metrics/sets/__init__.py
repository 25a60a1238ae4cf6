"""Metrics of sets of images: FID, KID and Inception Score, from extractors of features."""
