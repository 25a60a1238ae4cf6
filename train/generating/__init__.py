"""A set of pictures: prompts or given pictures in, a PNG and a JSON for each out, in units."""
