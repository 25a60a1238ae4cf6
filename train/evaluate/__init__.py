"""Evaluation: protocols, generated images under them, scores, comparisons."""
