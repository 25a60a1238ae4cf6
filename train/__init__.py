"""From a slice of a manifest to a model: encode once, train, resume exactly, export."""
