"""Stages that look at all rows at once: duplicates, and ranks."""
