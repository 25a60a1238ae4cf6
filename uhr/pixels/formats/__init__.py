"""A module for each file format: its structure, its header, and how its pixels are read."""
