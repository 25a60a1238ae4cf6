"""From a slice of a manifest to latents and text embeddings, in units."""
