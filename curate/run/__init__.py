"""A run of a pipeline over a source: its units, their rows, and the manifest made from them."""
