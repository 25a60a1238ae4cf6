"""Trains a model's VAE: what is loaded, batches of pixels, held-out reconstructions, and the plan."""
