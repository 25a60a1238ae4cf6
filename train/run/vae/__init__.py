"""Trains a model's VAE: what is loaded, batches of pixels, and held-out reconstructions."""
