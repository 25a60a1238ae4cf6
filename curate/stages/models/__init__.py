"""Stages that score batches of images, or texts of their rows, with a model."""
