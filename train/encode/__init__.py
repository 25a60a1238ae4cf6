"""Encodes a manifest to latents and text embeddings, in units."""
