"""Compare manifests: what changed between two, and the history of one sample."""
