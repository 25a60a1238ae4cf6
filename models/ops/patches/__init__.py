"""Overlapping patches of an image or of latents: where they are, how they are blended, and their seams."""
