"""Configurations of other trainers, read as a pipeline of curation and changes to a recipe."""
