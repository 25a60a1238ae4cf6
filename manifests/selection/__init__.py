"""Select rows of a manifest: conditions, samples and splits."""
