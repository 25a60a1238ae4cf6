"""Sets of images in units: from prompts or images to a PNG and a JSON for each."""
