"""Exported adapters and their model cards."""
