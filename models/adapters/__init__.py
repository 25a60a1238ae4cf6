"""Adapters: low-rank changes of a backbone, on the model, in files, and from one kind to another."""
