"""Generated sets: a PNG and a JSON for each prompt or image, in units."""
