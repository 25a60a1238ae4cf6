"""Judges of two results: a vision-language model, and people who vote on a blind page."""
