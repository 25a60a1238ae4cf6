"""How well an image fits its prompt, and how much people prefer it: models of image and text together."""
