"""Choosing rows of a manifest: conditions, ranks, samples and splits."""
